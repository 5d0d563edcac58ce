"""lm-eval's own command line with our models and tasks, where the start-up hook does not run."""

import sys

from lm_eval.__main__ import cli_evaluate

from harness_adapters.lm_eval.discovery import add_models, add_tasks

if __name__ == "__main__":
    add_models()
    add_tasks()
    sys.exit(cli_evaluate())
