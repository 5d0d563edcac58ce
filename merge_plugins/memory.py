"""Memory of merged weights, of what is found out about their blocks, and what is given back."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

R = TypeVar("R")

HUGE = 2 << 20
"""Bytes of a huge page: to touch 4 KiB for the first time takes as long as to merge it."""

SMALL = 1 << 12
"""Bytes of a tensor that is small beside a block, at most."""
PART = 448
"""Bytes, with room for a header, that Python keeps in memory of its own instead of malloc's."""


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


def elements(tensor: Tensor) -> bytearray:
    """Copy the elements of a tensor on the CPU, in order, and no others of one that is a view."""
    return bytearray(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy())


def of_elements(raw: bytearray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Make a tensor of `elements`, which it keeps: [*shape]."""
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.view(shape)


@dataclass(frozen=True)
class Aside:
    """The elements of a small tensor, in objects that malloc has no part in."""

    dtype: torch.dtype
    shape: torch.Size
    parts: tuple[bytes, ...]


def set_aside(result: R) -> R | Aside:
    """Take a small tensor on the CPU off malloc's heap, where it would lie between two blocks.

    glibc before 2.38 cannot put a tensor where one of the same size was, unless memory beside that
    is free too. With a sum left behind each block, the heaps of two workers grew to 370 MB, and
    most blocks were computed in new memory, cleared by the system page by page.
    """
    if not isinstance(result, Tensor) or type(result) is not Tensor or result.requires_grad:
        return result
    if result.device.type != "cpu" or result.layout is not torch.strided or result.is_complex():
        return result
    if result.nbytes > SMALL:
        return result
    raw = elements(result)
    parts = tuple(bytes(raw[i : i + PART]) for i in range(0, len(raw), PART))
    return Aside(result.dtype, result.shape, parts)


def taken_back(result: R | Aside) -> R:
    """Make the tensor again that was `set_aside`; return anything else as it is."""
    if not isinstance(result, Aside):
        return result
    return cast(R, of_elements(bytearray().join(result.parts), result.dtype, result.shape))


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """Find malloc_trim of glibc; None on other systems."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def return_memory() -> None:
    """Return free memory between live objects to the system: glibc itself never does."""
    trim = _trim()
    if trim is not None:
        trim(0)
