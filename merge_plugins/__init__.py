"""Score, search and serve a merge of language models without writing the merged checkpoint."""

from importlib import import_module

from merge_plugins._version import __version__
from merge_plugins.api import ELEMENT, MATRIX, ROW, WHOLE, PerExpert, Slot, Weight, parameter
from merge_plugins.errors import MergeError
from merge_plugins.plugins import hookimpl, registry
from merge_plugins.recipe import Recipe

__all__ = [
    "ELEMENT",
    "MATRIX",
    "ROW",
    "WHOLE",
    "MergeError",
    "PerExpert",
    "Recipe",
    "Slot",
    "Weight",
    "__version__",
    "digest",
    "hookimpl",
    "load_merged",
    "merged_tensors",
    "mount",
    "open_merge",
    "parameter",
    "registry",
    "save",
]

LAZY = {
    "digest": "merge_plugins.identity",
    "merged_tensors": "merge_plugins.engine",
    "open_merge": "merge_plugins.engine",
    "load_merged": "merge_plugins.outputs.load",
    "save": "merge_plugins.outputs.save",
    "mount": "merge_plugins.outputs.mount",
    "Mounted": "merge_plugins.outputs.mount",  # what generated folders on users' disks import
}
"""Imported when they are asked for: transformers takes seconds, and ``merge-plugins list`` must not
wait for it."""


def __getattr__(name: str) -> object:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
