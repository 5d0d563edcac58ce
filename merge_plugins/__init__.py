"""Score, search and serve a merge of language models without writing the merged checkpoint."""

from merge_plugins.api import PerExpert, Slot, parameter
from merge_plugins.errors import MergeError
from merge_plugins.hookspecs import hookimpl
from merge_plugins.recipe import Recipe
from merge_plugins.registry import registry

__version__ = "0.1.0"

__all__ = [
    "MergeError",
    "PerExpert",
    "Recipe",
    "Slot",
    "hookimpl",
    "load_merged",
    "merged_tensors",
    "mount",
    "parameter",
    "registry",
    "save",
]


def __getattr__(name: str) -> object:
    # transformers takes seconds to import; `merge-plugins list` must not wait for it.
    if name == "load_merged":
        from merge_plugins.loading import load_merged

        return load_merged
    if name == "save":
        from merge_plugins.saving import save

        return save
    if name == "mount":
        from merge_plugins.mounting import mount

        return mount
    if name == "merged_tensors":
        from merge_plugins.runner import merged_tensors

        return merged_tensors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
