"""Lay out memory that merged weights are written to."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 2 << 20
"""Bytes of a huge page: to touch 4 KiB for the first time takes as long as to merge it."""


def new_memory(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate a tensor, [*sizes], on Linux in as many huge pages as it fills.

    Its last bytes lie in small pages, so that it takes no more memory than it holds.
    """
    count = math.prod(sizes)
    n_bytes = count * dtype.itemsize
    if device.type != "cpu" or n_bytes < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(sizes, dtype=dtype, device=device)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, -(-n_bytes // HUGE) * HUGE, flags=private)  # a multiple, to be aligned
    try:
        pages.madvise(mmap.MADV_HUGEPAGE, 0, n_bytes // HUGE * HUGE)
    except OSError:  # of a kernel without them
        return torch.empty(sizes, dtype=dtype, device=device)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(sizes)
