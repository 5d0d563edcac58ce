"""The ledger of a search: one line of JSON for each recipe that was scored, only ever appended.

It is the truth. Whatever else a search holds, Optuna's study included, is rebuilt from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from merge_plugins.errors import MergeError
from merge_plugins.search.dimensions import Value
from merge_plugins.search.locks import locked
from merge_plugins.search.objective import Score

NAME = "search.jsonl"
FOLDER = "folder"
"""Key of the header that may change: where relative paths of the recipe start."""
State = Literal["complete", "stopped", "failed", "repeat", "rerun"]


@dataclass(frozen=True)
class Trial:
    """What came of one candidate."""

    number: int
    state: State
    """``stopped``: racing showed on some documents that it cannot win. ``repeat``: the same merge
    as ``same_as``, not scored again. ``rerun``: ``same_as``, whole and by the ordinary path."""
    origin: str
    """``model NAME``, ``equal weights``, ``defaults``, or the sampler's name."""
    recipe: Mapping[str, Any]
    digest: str
    params: Mapping[str, Value] = field(default_factory=dict)
    """By dimension; empty for a model on its own, which is no point of the space."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    started: float = 0.0
    """Seconds since 1970."""
    seconds: float = 0.0
    worker: str = ""
    error: str = ""
    same_as: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_point(self) -> bool:
        """Whether the trial is a point of the space that a sampler can learn from."""
        return bool(self.params) and self.state != "rerun"

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Trial:
        """Read a trial from its line."""
        scores = {name: Score(**score) for name, score in line.get("scores", {}).items()}
        return cls(**{**line, "scores": scores})

    def as_line(self) -> dict[str, Any]:
        """Convert to what is written, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in ({}, "", None)}


@dataclass
class Ledger:
    """The ledger in a folder, shared by any number of processes."""

    folder: Path
    trials: list[Trial] = field(default_factory=list)
    """What was read so far."""
    header: Mapping[str, Any] = field(default_factory=dict)
    _offset: int = 0

    @property
    def file(self) -> Path:
        """The file of lines."""
        return self.folder / NAME

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder's lock: nobody else appends, or chooses what to score next."""
        return locked(self.folder / "search.lock")

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any]) -> Ledger:
        """Open or create a folder's ledger, and cut what a killed process left half written.

        Raises `MergeError` if it is the ledger of another search.
        """
        folder.mkdir(parents=True, exist_ok=True)
        ledger = cls(folder)
        with ledger.lock():
            ledger.file.touch()
            ledger._cut()
            ledger.read()
            if not ledger.header:
                ledger._write(header)
                ledger.read()
        _same_search(folder, ledger.header, json.loads(json.dumps(header)))
        return ledger

    @classmethod
    def existing(cls, folder: Path) -> Ledger:
        """Open a ledger to read it, or raise `MergeError` if there is none."""
        ledger = cls(folder)
        if not ledger.file.is_file():
            raise MergeError(f"{folder} holds no {NAME}; name the folder of a search")
        ledger.read()
        if not ledger.header:
            raise MergeError(f"{ledger.file} is empty: nothing was searched yet")
        return ledger

    def read(self) -> list[Trial]:
        """Read the lines that were appended since the last time; return all trials."""
        with self.file.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")
        for line in lines[:-1]:  # after the last end of a line nothing is complete
            self._take(line)
            self._offset += len(line) + 1
        return self.trials

    def append(self, trial: Trial) -> None:
        """Append a trial; the folder's lock must be held."""
        self._cut()
        self._write(trial.as_line())
        self.read()

    def _take(self, line: bytes) -> None:
        try:
            content = json.loads(line)
            if not self.header:
                self.header = content
            else:
                self.trials.append(Trial.from_line(content))
        except (ValueError, TypeError) as exc:
            n = len(self.trials) + bool(self.header) + 1
            raise MergeError(
                f"{self.file}, line {n} is no line of a ledger: {exc}. Was it edited? Restore or "
                "delete the line, and run the command again"
            ) from exc

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=True) + "\n"
        with self.file.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _cut(self) -> None:
        """Cut a last line that is not complete; its candidate is scored again."""
        with self.file.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end and not _ends_line(file, end):
                end = _last_line_end(file, end)
            file.truncate(end)


def _ends_line(file: BinaryIO, end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"


def _last_line_end(file: BinaryIO, end: int) -> int:
    """Return where the last complete line before ``end`` ends, or how far there is none."""
    start = max(end - 2**16, 0)
    file.seek(start)
    return start + file.read(end - start).rfind(b"\n") + 1


def _same_search(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in {**ours, **theirs}.keys() - {FOLDER}:
        if ours.get(key) != theirs.get(key):
            changes = "; ".join(_changes(key, theirs.get(key), ours.get(key)))
            raise MergeError(
                f"{folder} holds another search: {changes}. Scores of the two do not compare; name "
                "a new folder, or go back to what it was"
            )


def _changes(name: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in {**before, **after}:
            if before.get(key) != after.get(key):
                yield from _changes(f"{name}.{key}", before.get(key), after.get(key))
    else:
        yield f"{name} was {_short(before)} and is {_short(after)}"


def _short(value: Any) -> str:
    return "nothing" if value is None else f"{json.dumps(value):.60}"
