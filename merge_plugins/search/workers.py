"""Share a search among processes on one folder: each claims a candidate and holds its lock.

The system frees the lock of a process that ends, however it ends; another process then finds the
claim and takes the candidate up. A claim is made under the ledger's lock, as is its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from merge_plugins.search.dimensions import Value
from merge_plugins.search.locks import try_lock

MOST_ATTEMPTS = 5
"""Times that a candidate is begun. One whose workers all die, of too little memory say, is given up
then; any other would be begun for ever."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that is being scored."""

    number: int
    origin: str
    recipe: Mapping[str, Any]
    digest: str
    params: Mapping[str, Value]
    attempts: int = 1


@dataclass
class Claim:
    """A candidate of this process, with the lock that says so."""

    candidate: Candidate
    remove: Callable[[], None]
    drop: Callable[[], None]
    """Leaves the candidate to whoever takes it up."""

    def release(self) -> None:
        """Give the claim up when its trial is in the ledger, whose lock must be held.

        That lock keeps others from the candidate in between; Windows removes no open file.
        """
        self.drop()
        self.remove()


@dataclass(frozen=True)
class Claims:
    """The claims in a folder. The ledger's lock must be held for every call."""

    folder: Path

    def claim(self, candidate: Candidate) -> Claim:
        """Claim a candidate that nobody has."""
        self.folder.mkdir(exist_ok=True)
        file = self.folder / f"{candidate.number:06}.json"
        file.write_text(json.dumps(asdict(candidate)), encoding="utf-8")
        handle = try_lock(file)
        assert handle is not None, "whoever makes a claim holds the ledger's lock"
        return _claim(candidate, file, handle)

    def running(self) -> list[Candidate]:
        """List what living processes are scoring, this one included."""
        found = []
        for file in self._files():
            handle = try_lock(file)
            if handle is None:
                candidate = _read(file)
                found += [candidate] if candidate else []
            else:
                os.close(handle)
        return found

    def abandoned(self) -> Claim | None:
        """Take up what a process that is gone has left, counting one attempt more."""
        for file in self._files():
            handle = try_lock(file)
            if handle is None:
                continue
            candidate = _read(file)
            if candidate:
                again = replace(candidate, attempts=candidate.attempts + 1)
                file.write_text(json.dumps(asdict(again)), encoding="utf-8")
                return _claim(again, file, handle)
            os.close(handle)
            file.unlink()  # killed while it wrote the claim: nothing was begun
        return None

    def _files(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("*.json"))


def _claim(candidate: Candidate, file: Path, handle: int) -> Claim:
    return Claim(candidate, partial(file.unlink, missing_ok=True), partial(os.close, handle))


def _read(file: Path) -> Candidate | None:
    try:
        return Candidate(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
