"""Estimate how long a merge takes, from its first weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from merge_plugins.api import MATRIX
from merge_plugins.engine.work import granularity
from merge_plugins.notice import tell
from merge_plugins.planning import PlannedTensor

AFTER = 2.0
"""Seconds of merging before an estimate."""
WORTH = 10.0
"""Seconds from which on an estimate is worth a line."""

Work = Mapping[str, float]
"""How much there is to do of each kind; one kind's amounts compare with each other only."""


def work(planned: PlannedTensor, n_elements: int) -> Work:
    """Return what it takes to merge some elements of a weight: of matrices, or element by element.

    A method on matrices takes time with their smaller side; a weight that is copied takes none.
    """
    if planned.kernel is None or not n_elements:
        return {}
    if granularity(planned) is MATRIX:
        return {"matrices": n_elements * min(planned.shape[-2:])}
    return {"elements": n_elements * len(planned.stored)}


def total(works: Iterable[Work]) -> dict[str, float]:
    """Add up work of each kind."""
    found: dict[str, float] = {}
    for each in works:
        for kind, amount in each.items():
            found[kind] = found.get(kind, 0) + amount
    return found


@dataclass
class Meter:
    """Note what is done in which time; tell once how long all of it takes, when that shows."""

    whole: Work
    what: str
    """What takes that long, at the start of the line."""
    started: float | None = None
    """When the first weight was begun."""
    _done: dict[str, float] = field(default_factory=dict)
    _busy: dict[str, float] = field(default_factory=dict)
    _said: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, done: Work, began: float) -> None:
        """Note work that began at a time of `time.monotonic` and ends now; threads may share it."""
        now = time.monotonic()
        with self._lock:
            self.started = began if self.started is None else min(self.started, began)
            for kind, amount in done.items():
                self._done[kind] = self._done.get(kind, 0) + amount
                self._busy[kind] = self._busy.get(kind, 0) + (now - began)
            expected = None if self._said else self.expected(now)
            self._said = self._said or expected is not None
        if expected is not None and expected >= WORTH:
            tell(f"{self.what} {spelled(expected)}, as the first weights went.")

    def expected(self, now: float) -> float | None:
        """Return the seconds that all takes; None while too little is known.

        Each kind goes on as fast as it went, and as many weights at a time.
        """
        if self.started is None or now - self.started < AFTER:
            return None
        left = 0.0
        for kind, amount in self.whole.items():
            done = self._done.get(kind, 0)
            if amount > done and not done:
                return None
            left += max(amount - done, 0) * self._busy[kind] / done if done else 0
        at_a_time = sum(self._busy.values()) / (now - self.started)
        return now - self.started + left / max(at_a_time, 1e-9)


def spelled(seconds: float) -> str:
    """Write a time that is an estimate: "in about 40 s", "in about 12 min"."""
    return f"in about {seconds:.0f} s" if seconds < 120 else f"in about {seconds / 60:.0f} min"
