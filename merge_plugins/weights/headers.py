"""Read which tensors a safetensors or ``.bin`` file holds; their elements stay on disk."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.opened import Entry, OpenedFile, opened
from merge_plugins.weights.stored import DTYPES, NAMES, StoredTensor


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read the header of one weight file: its tensors by name, in file order.

    A file that is open already, and has not changed, is not read again.
    """
    found = opened(file, _open_safetensors if file.suffix == ".safetensors" else _open_bin)
    return {
        name: StoredTensor(name, file, dtype, shape, tensor, found, offset)
        for name, dtype, shape, offset, tensor in found.entries
    }


def _open_safetensors(file: Path) -> OpenedFile:
    """Open a file that the safetensors library has found valid, bytes of data included."""
    try:
        with file.open("rb") as handle, safe_open(file, "pt"):
            found = OpenedFile(file, handle)
            length = int.from_bytes(handle.read(8), "little")
            header: dict[str, Any] = json.loads(handle.read(length).decode())
        found.refuse_changes()  # the library opened the path by itself
    except (SafetensorError, ValueError, RecursionError, OSError) as exc:
        if isinstance(exc, CheckpointError):
            raise
        raise CheckpointError(
            f"{file} is not a whole safetensors file: {exc}. Download it again."
        ) from exc
    header.pop("__metadata__", None)
    entries = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{file}: {name} has dtype {entry['dtype']}, which we cannot merge"
            )
        if 0 in entry["shape"]:
            _refuse_endless(entry["shape"], f"{file}: {name}")
        start = 8 + length + entry["data_offsets"][0]
        entries.append(Entry(name, dtype, tuple(entry["shape"]), start))
    found.entries = tuple(entries)
    return found


def _refuse_endless(shape: list[int], what: str) -> None:
    """Raise `CheckpointError` for the shape of an empty tensor that no tensor can have."""
    try:
        torch.empty(shape)
    except (RuntimeError, TypeError) as exc:
        raise CheckpointError(f"{what} has the shape {shape}: {exc}") from exc


def _open_bin(file: Path) -> OpenedFile:
    try:
        with file.open("rb") as handle:
            found = OpenedFile(file, handle)
        loaded, sizes = _unpickled(file)
        found.refuse_changes()  # torch opened the path by itself
    except CheckpointError:
        raise
    except Exception as exc:  # a pickle is a program: it fails in whatever way it was written to
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise CheckpointError(
            f"{file} is damaged or a pickle of more than plain tensors, which could run code: "
            f"{reason}. Use a safetensors version of this model."
        ) from exc
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not tensors by name")
    entries = []
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{file} has the key {name!r}, which is no tensor's name")
        tensor = _plain(value, f"{file}: {name}")
        if sizes and tensor.untyped_storage().nbytes() not in sizes:
            raise CheckpointError(f"{file}: {name} is not what the file holds. Download it again.")
        entries.append(Entry(name, tensor.dtype, tuple(tensor.shape), tensor=tensor))
    found.entries = tuple(entries)
    return found


def _unpickled(file: Path) -> tuple[Any, set[int]]:
    """Load a pickle of tensors, mapped; return it and the sizes of what the file holds in bytes.

    Torch does not compare a mapped tensor's size with them, and would go on into what follows.
    """
    try:
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as exc:  # torch's old format cannot be mapped; there it does compare
        if "mmap" not in str(exc):
            raise
        return torch.load(file, map_location="cpu", weights_only=True), set()
    with zipfile.ZipFile(file) as records:
        return loaded, {record.file_size for record in records.infolist()}


def _plain(value: Any, what: str) -> Tensor:
    """Check that an entry of a pickle is a tensor with elements, of a dtype that can be merged."""
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{what} is a {type(value).__name__}, not a tensor")
    if value.dtype not in NAMES:
        dtype = str(value.dtype).removeprefix("torch.")
        raise CheckpointError(f"{what} has dtype {dtype}, which we cannot merge")
    if value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointError(
            f"{what} is a {value.layout} tensor on {value.device}, not a plain one"
        )
    return value.detach()
