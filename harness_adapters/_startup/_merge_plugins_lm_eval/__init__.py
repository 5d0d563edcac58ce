"""Watch for the import of lm-eval; small, as it runs at every start of Python.

Called from ``merge-plugins-lm-eval.pth``, and from Python 3.15 on from the ``.start`` file of the
same name (PEP 829). ``MERGE_PLUGINS_NO_LM_EVAL=1`` switches it off.
"""

import os
import sys


def watch():
    """Make this module a finder of the import system, once per process."""
    this = sys.modules[__name__]
    if this not in sys.meta_path and not os.environ.get("MERGE_PLUGINS_NO_LM_EVAL"):
        sys.meta_path.insert(0, this)


def find_spec(name, path=None, target=None):
    """Find lm-eval's two modules; called for every module that is not loaded yet."""
    if name not in ("lm_eval.models", "lm_eval.tasks"):
        return None
    from _merge_plugins_lm_eval import watcher

    return watcher.find_spec(name, path, target)
