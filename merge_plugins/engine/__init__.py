"""Carry out a plan: open the models, and merge each tensor when it is asked for."""

from merge_plugins.engine.cost import Cost, announce
from merge_plugins.engine.merge import Merge, MergedTensor
from merge_plugins.engine.opening import merged_tensors, open_merge, open_source

__all__ = [
    "Cost",
    "Merge",
    "MergedTensor",
    "announce",
    "merged_tensors",
    "open_merge",
    "open_source",
]
