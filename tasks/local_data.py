"""Rows of a data set: from the hub at a fixed revision, or from a folder on this machine.

The environment variable ``MERGE_PLUGINS_DATA`` names the folder, for every task here and in both
harnesses; where it is not set, rows come from the hub. A file in the folder is one JSON object per
line, or one JSON list, and may be gzipped with ``.gz`` added to its name.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_plugins.errors import DataError

VARIABLE = "MERGE_PLUGINS_DATA"


@dataclass(frozen=True)
class Source:
    """One split of a data set, and the file that holds the same rows in the user's folder."""

    file: str
    dataset: str
    revision: str
    split: str
    configs: tuple[str | None, ...] = (None,)
    """The data set's configurations, in the order in which their rows are joined."""
    columns: tuple[str, ...] = ()
    """What each row must have."""

    def __str__(self) -> str:
        return f"{self.dataset}@{self.revision[:8]} ({self.split})"


def load(source: Source) -> list[dict[str, Any]]:
    """Return the rows of a split; raises `DataError` that says which file or data set it wanted."""
    given = os.environ.get(VARIABLE)
    rows = from_hub(source) if given is None else _from_folder(source, Path(given))
    origin = str(source) if given is None else str(Path(given) / source.file)
    if not rows:
        raise DataError(f"{origin} has no rows.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{origin}: row {number} is not a JSON object.")
        missing = [column for column in source.columns if column not in row]
        if missing:
            raise DataError(
                f"{origin}: row {number} has no {missing[0]!r}; expected the columns of {source}: "
                f"{', '.join(source.columns)}."
            )
    return rows


def _from_folder(source: Source, folder: Path) -> list[Any]:
    file = folder / source.file
    if not file.is_file():
        file = folder / f"{source.file}.gz"
    if not file.is_file():
        raise DataError(
            f"{VARIABLE}={folder} has no {source.file}: expected there, one JSON object per line, "
            f"the rows of {source}. Unset {VARIABLE} to load them from the hub."
        )
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    text = content.decode("utf-8")
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as exc:
        raise DataError(f"{file} is not JSON, one object per line: {exc}") from exc


def from_hub(source: Source) -> list[Any]:
    """Return the rows of a split on the hub, wherever ``MERGE_PLUGINS_DATA`` points."""
    from datasets import load_dataset

    try:
        parts = [
            load_dataset(source.dataset, config, split=source.split, revision=source.revision)
            for config in source.configs
        ]
    except (OSError, ValueError) as exc:
        raise DataError(
            f"{source} cannot be loaded from the hub: {exc} Where you have the file "
            f"{source.file}, set {VARIABLE} to its folder."
        ) from exc
    return [dict(row) for part in parts for row in part]
