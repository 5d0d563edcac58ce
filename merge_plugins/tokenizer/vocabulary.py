"""Read the token of each embedding row from any file that a tokenizer comes in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.files import read_json, text_config


def vocabulary(folder: Path) -> dict[str, int]:
    """Map token strings to rows, added tokens included; empty when there is no tokenizer."""
    tokens = _own(folder)
    if tokens is None:
        return {}
    return {**tokens, **_added(folder)}


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Read the number of a model's embedding rows from its config."""
    found: int | None = text_config(config).get("vocab_size")
    return found


def with_vocabulary_size(config: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """Set the number of embedding rows in a config, wherever it stands."""
    if "vocab_size" not in config and "text_config" in config:
        return {**config, "text_config": {**config["text_config"], "vocab_size": n_rows}}
    return {**config, "vocab_size": n_rows}


def is_vocabulary(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> bool:
    """Whether a model's weight has one row per token: an embedding, a head, or a head's bias."""
    return (
        tuple(shape[:1]) == (vocabulary_size(config),)
        and (len(shape) == 2 or name.endswith(".bias"))
        and not re.search(r"\.\d+\.|position|\bwpe\b", name)  # of a layer, or of a place
    )


def _own(folder: Path) -> Mapping[str, int] | None:
    """Read the tokens of the tokenizer's model, without those added later."""
    if (folder / "tokenizer.json").is_file():
        contents = read_json(folder / "tokenizer.json")
        tokens = contents["model"].get("vocab", {})
        if isinstance(tokens, list):  # unigram models: [token, score] in order
            tokens = {token: row for row, (token, _) in enumerate(tokens)}
        added = contents.get("added_tokens", [])
        return {**tokens, **{token["content"]: token["id"] for token in added}}
    if (folder / "vocab.json").is_file():
        return read_json(folder / "vocab.json")
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        return {token: row for row, token in enumerate(lines) if token or row < len(lines) - 1}
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            pieces = list(_sentencepieces(folder / name))
            return {token: row for row, token in reversed(list(enumerate(pieces)))}
    return None


def _added(folder: Path) -> dict[str, int]:
    """Read the tokens that stand beside the tokenizer's model."""
    if (folder / "tokenizer.json").is_file():
        return {}  # it lists them itself
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        found |= read_json(folder / "added_tokens.json")
    if (folder / "tokenizer_config.json").is_file():
        listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        found |= {token["content"]: int(row) for row, token in listed.items()}
    return found


def _sentencepieces(file: Path) -> Iterator[str]:
    """Yield the pieces of a sentencepiece model: field 1 of field 1 of its protocol buffer."""
    try:
        for number, piece in _fields(file.read_bytes()):
            if number == 1:
                yield dict(_fields(piece))[1].decode()
    except (IndexError, KeyError, ValueError) as exc:
        raise CheckpointError(
            f"{file} is no sentencepiece model: {exc}. Download it again."
        ) from exc


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the length-delimited fields of a protocol buffer; skip the others."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("it ends inside a field")
            yield number, data[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
