"""Read the token of each embedding row from any file that a tokenizer comes in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.files import read_bytes, read_json, text_config

ID = re.compile(r"[0-9]{1,9}")
ROWS = 2**21
"""Rows that an embedding may have; XLM-V, with the largest vocabulary we know of, has 901,629."""


def vocabulary(folder: Path) -> dict[str, int]:
    """Map token strings to rows, added tokens included; empty when there is no tokenizer."""
    tokens = _own(folder)
    if tokens is None:
        return {}
    return {**tokens, **_added(folder)}


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Read the number of a model's embedding rows from its config."""
    found = text_config(config).get("vocab_size")
    return found if type(found) is int else None


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
    file = folder / "tokenizer.json"
    if file.is_file():
        model = read_json(file).get("model")
        tokens = model.get("vocab", {}) if isinstance(model, Mapping) else None
        if isinstance(tokens, list):  # unigram models: [token, score] in order
            if not all(isinstance(each, list) and each for each in tokens):
                raise damaged(file, "its vocab is no list of [token, score]")
            tokens = _numbered(file, [each[0] for each in tokens])
        added = {entry["content"]: entry["id"] for entry in added_entries(file)}
        return {**_checked(file, tokens), **_checked(file, added)}
    if (folder / "vocab.json").is_file():
        return _checked(folder / "vocab.json", read_json(folder / "vocab.json"))
    if (folder / "vocab.txt").is_file():
        *lines, last = read_text(folder / "vocab.txt").split("\n")
        return _numbered(folder / "vocab.txt", [*lines, last] if last else lines)
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            pieces = list(_sentencepieces(folder / name))
            numbered = {token: row for row, token in reversed(list(enumerate(pieces)))}
            return _checked(folder / name, numbered)
    return None


def _added(folder: Path) -> dict[str, int]:
    """Read the tokens that stand beside the tokenizer's model."""
    if (folder / "tokenizer.json").is_file():
        return {}  # it lists them itself
    found: dict[str, int] = {}
    file = folder / "added_tokens.json"
    if file.is_file():
        found |= _checked(file, read_json(file))
    file = folder / "tokenizer_config.json"
    if file.is_file():
        listed = read_json(file).get("added_tokens_decoder") or {}
        if not isinstance(listed, Mapping) or not all(ID.fullmatch(row) for row in listed):
            raise damaged(file, "its added_tokens_decoder does not map ids to tokens")
        entries = _entries(file, "added_tokens_decoder", list(listed.values()))
        rows = map(int, listed)
        found |= _checked(file, {e["content"]: row for e, row in zip(entries, rows, strict=True)})
    return found


def added_entries(file: Path) -> list[dict[str, Any]]:
    """Read the entries of added tokens in a tokenizer.json, each with its content and id."""
    entries = _entries(file, "added_tokens", read_json(file).get("added_tokens") or [])
    if not all("id" in entry for entry in entries):
        raise damaged(file, "an entry of its added_tokens has no id")
    return entries


def _entries(file: Path, key: str, found: Any) -> list[dict[str, Any]]:
    """Check that each entry of a list has the text of a token."""
    entries: list[Any] = found if isinstance(found, list) else [None]
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise damaged(file, f"its {key} has an entry without content: {entry!r:.80}")
    return entries


def _numbered(file: Path, tokens: Sequence[Any]) -> dict[str, int]:
    """Number tokens in their order."""
    if not all(isinstance(token, str) for token in tokens):
        raise damaged(file, "a token of its vocab is no text")
    return _checked(file, {token: row for row, token in enumerate(tokens)})


def _checked(file: Path, tokens: Any) -> dict[str, int]:
    """Return tokens by row, or raise `CheckpointError` for what is no row of an embedding."""
    if not isinstance(tokens, Mapping):
        raise damaged(file, "it has no vocab")
    for token, row in tokens.items():
        if type(row) is not int or not 0 <= row < ROWS:
            what = f"token {token[:40]!r} has id {row!r:.40}; an id is 0 to {ROWS - 1:,}"
            raise damaged(file, what)
    return dict(tokens)


def damaged(file: Path, what: str) -> CheckpointError:
    """Build the error for a file of a tokenizer that is not as transformers writes it."""
    return CheckpointError(
        f"{file}: {what}. Download it again, or write it anew with "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def read_text(file: Path) -> str:
    """Read a text file of a model, or raise `CheckpointError` with its name."""
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise CheckpointError(f"{file} is not readable text: {exc}. Download it again.") from exc


def _sentencepieces(file: Path) -> Iterator[str]:
    """Yield the pieces of a sentencepiece model: field 1 of field 1 of its protocol buffer."""
    try:
        for number, piece in _fields(read_bytes(file)):
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
    while shift < 64:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
