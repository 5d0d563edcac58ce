"""Read tensors lazily: stored in files, or computed from stored ones while they are read."""

from merge_plugins.weights.checkpoint import Checkpoint, module_tensors, open_checkpoint
from merge_plugins.weights.computed import (
    ComputedTensor,
    SourceTensor,
    held,
    opened_files,
    signature,
)
from merge_plugins.weights.opened import shared_sources
from merge_plugins.weights.stored import StoredTensor

__all__ = [
    "Checkpoint",
    "ComputedTensor",
    "SourceTensor",
    "StoredTensor",
    "held",
    "module_tensors",
    "open_checkpoint",
    "opened_files",
    "shared_sources",
    "signature",
]
