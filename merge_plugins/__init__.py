"""Score, search and serve a merge of language models without writing the merged checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING

from merge_plugins._version import __version__

if TYPE_CHECKING:
    from merge_plugins.api import ELEMENT, MATRIX, ROW, WHOLE, PerExpert, Slot, Weight, parameter
    from merge_plugins.engine import merged_tensors, open_merge
    from merge_plugins.errors import MergeError
    from merge_plugins.identity import digest
    from merge_plugins.outputs.classifiers import load_classifiers
    from merge_plugins.outputs.embedder import load_embedder, load_reranker
    from merge_plugins.outputs.load import load_merged
    from merge_plugins.outputs.mount import Mounted as Mounted
    from merge_plugins.outputs.mount import mount
    from merge_plugins.outputs.overwrite import overwrite
    from merge_plugins.outputs.publish import push
    from merge_plugins.outputs.save import save
    from merge_plugins.plugins import hookimpl, load_plugin, registry
    from merge_plugins.recipe import Recipe
    from merge_plugins.weights import shared_sources

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
    "load_classifiers",
    "load_embedder",
    "load_merged",
    "load_plugin",
    "load_reranker",
    "merged_tensors",
    "mount",
    "open_merge",
    "overwrite",
    "parameter",
    "push",
    "registry",
    "save",
    "shared_sources",
]

LAZY = {
    **dict.fromkeys(("ELEMENT", "MATRIX", "ROW", "WHOLE", "PerExpert"), "merge_plugins.api"),
    **dict.fromkeys(("Slot", "Weight", "parameter"), "merge_plugins.api"),
    **dict.fromkeys(("hookimpl", "load_plugin", "registry"), "merge_plugins.plugins"),
    "MergeError": "merge_plugins.errors",
    "Recipe": "merge_plugins.recipe",
    "digest": "merge_plugins.identity",
    "merged_tensors": "merge_plugins.engine",
    "open_merge": "merge_plugins.engine",
    "load_classifiers": "merge_plugins.outputs.classifiers",
    "load_embedder": "merge_plugins.outputs.embedder",
    "load_merged": "merge_plugins.outputs.load",
    "load_reranker": "merge_plugins.outputs.embedder",
    "overwrite": "merge_plugins.outputs.overwrite",
    "push": "merge_plugins.outputs.publish",
    "save": "merge_plugins.outputs.save",
    "shared_sources": "merge_plugins.weights",
    "mount": "merge_plugins.outputs.mount",
    "Mounted": "merge_plugins.outputs.mount",  # what generated folders on users' disks import
}
"""Imported when they are asked for: torch and transformers take seconds, for which ``merge-plugins
--help`` must not wait, and in which an interrupt must end the command without a traceback."""


def __getattr__(name: str) -> object:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
