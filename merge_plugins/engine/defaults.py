"""Merge with torch's own defaults: loaders change them for the process while they load a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

_lock = threading.Lock()
_n_merging = 0
_dtype_before = torch.float32


@contextmanager
def own_defaults() -> Iterator[None]:
    """Make tensors of no named dtype or device float32 on the CPU, as kernels expect.

    vLLM loads weights with the model's dtype as the default, anybody inside of ``with
    torch.device("cuda")``. The dtype is the process's: it returns when no thread merges any more.
    """
    global _n_merging, _dtype_before
    elsewhere = torch.get_default_device().type != "cpu"
    with _lock:
        if not _n_merging:
            _dtype_before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _n_merging += 1
    try:
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        with _lock:
            _n_merging -= 1
            if not _n_merging:
                torch.set_default_dtype(_dtype_before)
