"""Whether models agree on what each row of their embeddings means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merge_plugins.checkpoint import read_json
from merge_plugins.errors import MismatchError


def vocabulary(folder: Path) -> dict[str, int]:
    """Return token string to row, from ``tokenizer.json``; empty when there is none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    held = read_json(file)
    tokens = held["model"].get("vocab", {})
    if isinstance(tokens, list):  # unigram models: [token, score] in order
        tokens = {token: row for row, (token, _) in enumerate(tokens)}
    return {**tokens, **{added["content"]: added["id"] for added in held.get("added_tokens", [])}}


def check_same_vocabulary(folders: Sequence[Path]) -> None:
    """Raise unless every model with a ``tokenizer.json`` puts the same token in the same row."""
    raw = {
        folder: (folder / "tokenizer.json").read_bytes()
        for folder in folders
        if (folder / "tokenizer.json").is_file()
    }
    if len(set(raw.values())) <= 1:
        return
    first, *others = raw
    expected = vocabulary(first)
    for folder in others:
        differing = expected.items() ^ vocabulary(folder).items()
        if differing:
            token = min(differing, key=lambda item: (item[1], item[0]))[0]
            raise MismatchError(
                f"tokenizer_source: the vocabularies of {first} and {folder} differ, first at "
                f"token {token!r}. Aligning rows by token is not supported yet; leave "
                "tokenizer_source out if the difference is in rows you do not use."
            )
