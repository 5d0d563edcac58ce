"""Carry out a plan: open the models, and merge each tensor when it is asked for."""

from merge_plugins.engine.merge import Merge, MergedTensor
from merge_plugins.engine.opening import merged_tensors, open_merge, open_source

__all__ = ["Merge", "MergedTensor", "merged_tensors", "open_merge", "open_source"]
