"""Find the files of a model folder: weights, index, tokenizer, adapter; read JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from merge_plugins.errors import CheckpointError

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken", "chat_template.*",
)  # fmt: skip

LARGEST = 256 * 2**20
"""Most bytes of a file beside the weights; a large tokenizer has 40 MB."""
NAMED = (".safetensors", ".safetensors.index.json")
"""Endings of file names that transformers takes under ``transformers_weights``."""


def _named_file(path: Path) -> Path | None:
    """Find the weight file or index that ``transformers_weights`` in config.json names, if any."""
    config = path / "config.json"
    name = read_json(config).get("transformers_weights") if config.is_file() else None
    if name is None:
        return None
    if not _is_file_name(name) or not name.endswith(NAMED):
        raise CheckpointError(
            f"{config}: transformers_weights is {name!r}; it names a file beside it that ends with "
            f"{' or '.join(NAMED)}"
        )
    if not (path / name).is_file():
        raise CheckpointError(
            f"{path / name} is missing; transformers_weights in {config} names it"
        )
    return path / name


def _is_file_name(given: object) -> TypeGuard[str]:
    """Whether a value from JSON can name a file beside the one it stands in, and in no other place.

    The limit of 255 bytes is that of common file systems.
    """
    if not isinstance(given, str) or given in ("", ".", "..") or {"/", "\\", "\0"} & {*given}:
        return False
    try:
        return len(given.encode()) <= 255
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def index_file(path: Path) -> Path | None:
    """Find the index file of a sharded checkpoint; None if it is not sharded."""
    named = _named_file(path)
    if named is not None:
        return named if named.suffix == ".json" else None
    names = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    plain = ("model.safetensors", "pytorch_model.bin")
    for name, single in zip(names, plain, strict=True):
        if (path / single).is_file():
            return None
        if (path / name).is_file():
            return path / name
    return None


def weight_map(index: Path) -> dict[str, str]:
    """Read a sharded checkpoint's map from tensor name to file name."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise CheckpointError(f"{index} has no weight_map. Download the model again.")
    for name, file in files.items():
        if not _is_file_name(file):
            raise CheckpointError(
                f"{index}: {name} is in {file!r}, which is no file beside the index. "
                "Download the model again."
            )
    return files


def weight_files(path: Path) -> tuple[Path, ...]:
    """Find a checkpoint's weight files by the rules of transformers; all must exist."""
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder")
    index, named = index_file(path), _named_file(path)
    if index is None and named is not None:
        return (named,)
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
    """Find the files of a PEFT adapter: its configuration, then its weights."""
    config = path / "adapter_config.json"
    names = ("adapter_model.safetensors", "adapter_model.bin")
    weights = [path / name for name in names if (path / name).is_file()]
    if not config.is_file() or not weights:
        raise CheckpointError(
            f"{path} is no LoRA adapter: it needs adapter_config.json and {names[0]}"
        )
    return config, weights[0]


def tokenizer_files(path: Path) -> list[Path]:
    """List the tokenizer files of a model folder."""
    found = (file for pattern in TOKENIZER_FILES for file in path.glob(pattern))
    return sorted({file for file in found if file.is_file()})


def read_bytes(file: Path) -> bytes:
    """Read a file beside the weights, or raise `CheckpointError` with its name."""
    try:
        with file.open("rb") as handle:
            found = handle.read(LARGEST + 1)
    except OSError as exc:
        raise CheckpointError(f"{file} cannot be read: {exc}. Download it again.") from exc
    if len(found) > LARGEST:
        raise CheckpointError(
            f"{file} has more than {LARGEST // 2**20} MiB, which no file beside the weights needs. "
            "Download it again."
        )
    return found


def parsed_json(file: Path) -> Any:
    """Read a JSON file of any content; raise `CheckpointError` with the file name if it is none."""
    try:
        return json.loads(read_bytes(file).decode("utf-8"))
    except CheckpointError:  # a ValueError too
        raise
    except (RecursionError, ValueError) as exc:
        raise CheckpointError(f"{file} is not readable JSON: {exc}") from exc


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raise `CheckpointError` with the file name if it is not one."""
    found = parsed_json(file)
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(found).__name__}")
    return found


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the ``text_config`` section of a multimodal model's config into its top level.

    Keys at the top level take precedence.
    """
    section = config.get("text_config")
    return {**(section if isinstance(section, Mapping) else {}), **config}
