"""Read tensors of safetensors and ``.bin`` files, memory-mapped; write a safetensors header."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.parallel import parallel
from merge_plugins.weights.opened import OpenedFile
from merge_plugins.weights.resident import resident_on

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Dtypes by their name in the safetensors format."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CPU = torch.device("cpu")
PART = 1 << 20
"""Elements that one thread reads into memory at a time."""


@dataclass(eq=False)
class StoredTensor:
    """Read one tensor of one file on demand, memory-mapped."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    _tensor: Tensor | None = None
    opened: OpenedFile | None = None
    """The file as it was opened; None for a tensor in memory."""
    _offset: int = 0

    @property
    def signature(self) -> Hashable | None:
        """What is equal for tensors of equal bits; None for a tensor in memory."""
        return self.opened and (self.file, self.opened.stamp, self.name)

    @property
    def read_as(self) -> torch.dtype:
        """Dtype of tensors that `read` and `view` return: the stored one."""
        return self.dtype

    def view(self) -> Tensor:
        """Map the whole tensor; pages are read when their elements are accessed.

        Returns it from memory if it is kept there: see `hold`.
        """
        if self.opened is not None:
            self.opened.refuse_truncation()
        kept = self._resident
        if kept is not None:
            return kept
        if self._tensor is not None:
            return self._tensor
        count = math.prod(self.shape)
        if self.opened is None or count == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if self._offset % self.dtype.itemsize:
            return self._aligned
        flat = torch.frombuffer(self.opened.map, dtype=self.dtype, count=count, offset=self._offset)
        return flat.view(self.shape)

    @property
    def _resident(self) -> Tensor | None:
        resident = resident_on(CPU)
        return None if resident is None else resident.find(self.signature)

    @cached_property
    def _aligned(self) -> Tensor:
        """Aligned copy of the tensor: torch needs alignment, the format does not promise it."""
        assert self.opened is not None, "only tensors of a file lie anywhere"
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        raw = bytearray(self.opened.map[self._offset : self._offset + n_bytes])
        return torch.frombuffer(raw, dtype=self.dtype).view(self.shape)

    def private(self) -> Tensor:
        """Map the whole tensor copy-on-write: writing to it changes neither file nor other maps.

        Copies the tensor where the format does not allow a map.
        """
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        if self._tensor is not None or self.opened is None or not n_bytes:
            return self.view().clone()
        kept = self._resident
        if kept is not None:
            return kept.clone()
        if self._offset % self.dtype.itemsize:
            return self.view().clone()
        self.opened.refuse_changes()
        stop = self._offset + n_bytes
        mapped = torch.from_file(str(self.file), shared=False, size=stop, dtype=torch.uint8)
        self.opened.refuse_changes()  # between the two the path was opened again
        own = torch.from_numpy(
            mapped.numpy()[self._offset :]
        )  # so that the storage is no larger than the tensor
        return own.view(self.dtype).view(self.shape)

    def read(self, region: Region) -> Tensor:
        """Map a region of the tensor; pages are read when their elements are accessed."""
        return region.of(self.view())

    def read_into(self, target: Tensor, region: Region) -> None:
        """Copy a region into memory of the CPU: contiguous, [*region.sizes], of this dtype.

        A region that lies in one piece is read without a page of it being mapped.
        """
        span = region.span
        mapped = self._tensor is None and self.opened is not None and self._resident is None
        if not mapped or span is None or not region.numel:
            target.copy_(self.read(region))
            if span is not None:
                self.release(*span)
            return
        assert self.opened is not None, "it is mapped"
        raw = target.view(-1).view(torch.uint8).numpy().data
        self.opened.read_into(raw, self._offset + span[0] * self.dtype.itemsize)

    def hold(self) -> None:
        """Read it into memory if `shared_sources` keeps it there; else it is read as it is used."""
        resident = resident_on(CPU)
        if resident is not None:
            resident.keep(self.signature, self._in_memory)

    def _in_memory(self) -> Tensor:
        whole = torch.empty(self.shape, dtype=self.dtype, device=CPU)

        def read(part: Region) -> None:
            self.read_into(part.of(whole), part)

        parallel(read, Region.whole(self.shape).blocks(PART))
        return whole

    def forget(self) -> None:
        """Do nothing: what `hold` has read stays until the end of a `shared_sources` block."""

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Release the memory pages of elements ``[start, stop)``; they can be read again."""
        if self._tensor is not None or self.opened is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        size, page = self.dtype.itemsize, mmap.PAGESIZE
        stop = math.prod(self.shape) if stop is None else stop
        first = (self._offset + start * size) // page * page
        last = (self._offset + stop * size) // page * page  # a page shared with what follows stays
        if last > first:
            self.opened.map.madvise(mmap.MADV_DONTNEED, first, last - first)


def write_header(tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]]) -> bytes:
    """Encode the header of a safetensors file, its length first, padded to 8 bytes.

    ``tensors``: name, dtype and shape, in the order in which their data follows.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape in tensors:
        stop = start + math.prod(shape) * dtype.itemsize
        offsets = [start, stop]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
