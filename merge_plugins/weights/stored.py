"""Read tensors of safetensors and ``.bin`` files, memory-mapped; read and write the header."""

from __future__ import annotations

import json
import math
import mmap
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.errors import CheckpointError

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


@dataclass(frozen=True)
class StoredTensor:
    """Read one tensor of one file on demand, memory-mapped."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    _tensor: Tensor | None = None
    _map: mmap.mmap | None = None
    _offset: int = 0

    @property
    def read_as(self) -> torch.dtype:
        """Dtype of tensors that `read` and `view` return: the stored one."""
        return self.dtype

    def view(self) -> Tensor:
        """Map the whole tensor; pages are read when their elements are accessed."""
        if self._tensor is not None:
            return self._tensor
        count = math.prod(self.shape)
        if self._map is None or count == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if self._offset % self.dtype.itemsize:
            return self._aligned
        flat = torch.frombuffer(self._map, dtype=self.dtype, count=count, offset=self._offset)
        return flat.view(self.shape)

    @cached_property
    def _aligned(self) -> Tensor:
        """Aligned copy of the tensor: torch needs alignment, the format does not promise it."""
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        raw = bytearray((self._map or b"")[self._offset : self._offset + n_bytes])
        return torch.frombuffer(raw, dtype=self.dtype).view(self.shape)

    def private(self) -> Tensor:
        """Map the whole tensor copy-on-write: writing to it changes neither file nor other maps.

        Copies the tensor where the format does not allow a map.
        """
        if self._map is None or not math.prod(self.shape) or self._offset % self.dtype.itemsize:
            return self.view().clone()
        stop = self._offset + math.prod(self.shape) * self.dtype.itemsize
        mapped = torch.from_file(str(self.file), shared=False, size=stop, dtype=torch.uint8)
        own = torch.from_numpy(
            mapped.numpy()[self._offset :]
        )  # so that the storage is no larger than the tensor
        return own.view(self.dtype).view(self.shape)

    def read(self, region: Region) -> Tensor:
        """Map a region of the tensor; pages are read when their elements are accessed."""
        return region.of(self.view())

    def hold(self) -> None:
        """Do nothing: a stored tensor can always be read."""

    def forget(self) -> None:
        """Do nothing: `hold` keeps nothing in memory."""

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Release the memory pages of elements ``[start, stop)``; they can be read again."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        size, page = self.dtype.itemsize, mmap.PAGESIZE
        stop = math.prod(self.shape) if stop is None else stop
        first = (self._offset + start * size) // page * page
        last = (self._offset + stop * size) // page * page  # a page shared with what follows stays
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read the header of one weight file: its tensors by name, in file order."""
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)


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


def _read_safetensors(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
            # Private and writable only so that torch can wrap it; nothing ever writes.
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    except (ValueError, OSError, AttributeError, KeyError, TypeError) as exc:
        raise CheckpointError(
            f"{file} is not a whole safetensors file: {exc}. Download it again."
        ) from exc
    start, tensors = 8 + length, {}
    for name, entry in entries:
        first, last = entry["data_offsets"]
        dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None:
            raise CheckpointError(
                f"{file}: {name} has dtype {entry['dtype']}, which we cannot merge"
            )
        if start + last > size:
            raise CheckpointError(
                f"{file} is truncated: {name} ends at byte {start + last}, the file at {size}. "
                "Download it again."
            )
        if last - first != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"{file}: {name} {list(shape)} does not fill {last - first} bytes"
            )
        tensors[name] = StoredTensor(name, file, dtype, shape, None, mapped, start + first)
    return tensors


def _read_bin(file: Path) -> dict[str, StoredTensor]:
    try:
        try:
            loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as exc:  # torch's old format cannot be memory-mapped
            if "mmap" not in str(exc):
                raise
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as exc:
        raise CheckpointError(
            f"{file} is damaged or a pickle of more than plain tensors, which could run code: "
            f"{str(exc).splitlines()[0]}. Use a safetensors version of this model."
        ) from exc
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not tensors by name")
    tensors = {}
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {name} is a {type(value).__name__}, not a tensor")
        tensors[name] = StoredTensor(name, file, value.dtype, tuple(value.shape), value)
    return tensors
