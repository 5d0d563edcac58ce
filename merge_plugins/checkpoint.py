"""A model on disk as a lazy mapping from tensor name to stored tensor. Opening reads headers only.

Safetensors files (one or sharded) are read by our own few lines over `mmap`: tensors are zero-copy
views, and the pages behind them can be handed back as soon as a block is merged, so that sources
of any size leave no trace in memory. ``.bin`` files are read by torch with ``weights_only=True``.
"""

from __future__ import annotations

import json
import math
import mmap
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_plugins import unmergeable
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
"""Dtype names of the safetensors format."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken", "chat_template.*",
)  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in one file, not read yet."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    _tensor: Tensor | None = None
    _map: mmap.mmap | None = None
    _offset: int = 0

    @property
    def read_as(self) -> torch.dtype:
        """Its dtype."""
        return self.dtype

    def view(self) -> Tensor:
        """Return the whole tensor without reading it: pages come in as elements are touched."""
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
        """A copy: the format does not promise alignment, and torch asks for it."""
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        raw = bytearray((self._map or b"")[self._offset : self._offset + n_bytes])
        return torch.frombuffer(raw, dtype=self.dtype).view(self.shape)

    def private(self) -> Tensor:
        """Return the whole tensor, as unread, in memory of its own: writing to it is seen nowhere.

        A map of its own where the format allows it: pages nobody writes to are the file's.
        """
        if self._map is None or not math.prod(self.shape) or self._offset % self.dtype.itemsize:
            return self.view().clone()
        stop = self._offset + math.prod(self.shape) * self.dtype.itemsize
        mapped = torch.from_file(str(self.file), shared=False, size=stop, dtype=torch.uint8)
        own = torch.from_numpy(mapped.numpy()[self._offset :])  # a storage no larger than it
        return own.view(self.dtype).view(self.shape)

    def read(self, region: Region) -> Tensor:
        """Return a box of the tensor, as unread as the whole."""
        return region.of(self.view())

    def hold(self) -> None:
        """Nothing to make ready; see `computed.SourceTensor`."""

    def forget(self) -> None:
        """Nothing was kept; see `computed.SourceTensor`."""

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Hand the pages of elements ``[start, stop)`` back; a later touch reads them again."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        size, page = self.dtype.itemsize, mmap.PAGESIZE
        stop = math.prod(self.shape) if stop is None else stop
        first = (self._offset + start * size) // page * page
        last = (self._offset + stop * size) // page * page  # a page shared with what follows stays
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


class Checkpoint(Mapping[str, StoredTensor]):
    """A model folder: its tensors by name, in file order, and its ``config.json``.

    Or one file of tensors, a state dict without a config.
    """

    def __init__(self, ref: str, path: Path) -> None:
        self.ref, self.path = ref, path
        self.files = weight_files(path)
        wanted = self._index()
        self._tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            for name, tensor in read_header(file).items():
                if wanted and wanted.get(name) != file.name:
                    continue  # a shard may hold tensors its index assigns elsewhere
                if name in self._tensors:
                    other = self._tensors[name].file.name
                    raise CheckpointError(f"{path}: {name} is both in {other} and in {file.name}")
                self._tensors[name] = tensor
        missing = [name for name in wanted if name not in self._tensors]
        if missing:
            raise CheckpointError(
                f"{path}: {len(missing)} tensors are in the index but in no file, first "
                f"{missing[0]} (expected in {wanted[missing[0]]}). Download the model again."
            )

    def _index(self) -> dict[str, str]:
        index = index_file(self.path)
        return weight_map(index) if index else {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What ``config.json`` says; nothing for a file of tensors."""
        if self.path.is_file():
            return {}
        file = self.path / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{self.path} has no config.json; is it a model folder?")
        return read_json(file)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_checkpoint(ref: str) -> Checkpoint:
    """Open a local folder or a hub id (``org/name[@revision]``); reads no weight."""
    from merge_plugins.hub import resolve

    path = resolve(ref)
    if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        raise CheckpointError(
            f"{ref} is a LoRA adapter, not a model. Name the model it was trained on too: "
            f"{base or '<model>'}+{ref} (in models= of model_args, {base or '<model>'}++{ref})."
        )
    if path.suffix == ".gguf":
        raise unmergeable.quantized(ref, "a GGUF file")
    checkpoint = Checkpoint(ref, path)
    unmergeable.refuse(ref, checkpoint, checkpoint.config)
    return checkpoint


def index_file(path: Path) -> Path | None:
    """Return the index of a sharded checkpoint, if it is one."""
    names = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    plain = ("model.safetensors", "pytorch_model.bin")
    for name, single in zip(names, plain, strict=True):
        if (path / single).is_file():
            return None
        if (path / name).is_file():
            return path / name
    return None


def weight_map(index: Path) -> dict[str, str]:
    """Return which file holds which tensor."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict):
        raise CheckpointError(f"{index} has no weight_map. Download the model again.")
    return found


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return a checkpoint's weight files as transformers would choose them; all must exist."""
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder")
    index = index_file(path)
    if index is not None:
        files = [path / name for name in dict.fromkeys(weight_map(index).values())]
    else:
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        files = [file for file in files if file.is_file()][:1]
    if not files:
        files = sorted(path.glob("*.safetensors"))
        files = [file for file in files if not file.name.startswith("adapter_")]
    if not files:
        raise CheckpointError(f"{path} has no weights: no *.safetensors, no pytorch_model.bin")
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{path}: shard {file.name} is missing. Download the model again."
            )
    return tuple(files)


def adapter_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a PEFT adapter: its configuration, then its weights."""
    config = path / "adapter_config.json"
    names = ("adapter_model.safetensors", "adapter_model.bin")
    weights = [path / name for name in names if (path / name).is_file()]
    if not config.is_file() or not weights:
        raise CheckpointError(
            f"{path} is no LoRA adapter: it needs adapter_config.json and {names[0]}"
        )
    return config, weights[0]


def tokenizer_files(path: Path) -> list[Path]:
    """Return the files a tokenizer is made of."""
    found = (file for pattern in TOKENIZER_FILES for file in path.glob(pattern))
    return sorted({file for file in found if file.is_file()})


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object, or say which file is not one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as exc:
        raise CheckpointError(f"{file} is not readable JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(found).__name__}")
    return found


def read_header(file: Path) -> dict[str, StoredTensor]:
    """List the tensors of one weight file."""
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)


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
