"""MTEB's own command line, with merges for models.

    python -m harness_adapters.mteb run -m merge.yaml -t STS12 [any option of mteb]

``-m`` is a recipe file, a folder with one, or the short form; MTEB gets any other model as it is.
``--plugin FILE.py`` runs a file for the methods that it registers.
Results are filed under ``merged__NAME`` and the digest of the merge: an edited recipe is another
revision, which MTEB never takes for the one before. Classifiers are evaluated as rerankers.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from mteb.cli import main as mteb_main

from harness_adapters.ending import exit_status
from harness_adapters.mteb.models import register
from merge_plugins.cli.arguments import add_plugin
from merge_plugins.plugins import load_plugins

OPTIONS = ("-m", "--model")


def main(argv: Sequence[str] | None = None) -> int:
    """Run MTEB; return the exit status."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    add_plugin(parser)
    options, given = parser.parse_known_args(argv)
    load_plugins(options.plugin)
    for i, option in enumerate(given[:-1]):
        if option in OPTIONS:
            given[i + 1] = register(given[i + 1])
    sys.argv = ["mteb", *given]
    mteb_main()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
