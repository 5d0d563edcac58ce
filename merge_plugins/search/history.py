"""What a sampler learns from, and what every sampler is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from merge_plugins.search.dimensions import Value
from merge_plugins.search.ledger import Trial
from merge_plugins.search.space import Point


@dataclass(frozen=True)
class History:
    """What a sampler learns from: finished trials in the ledger's order, and what is running."""

    trials: Sequence[Trial]
    running: Sequence[Mapping[str, Value]] = ()

    @property
    def points(self) -> list[Trial]:
        """Trials that are points of the space; a repeat has the scores of its first."""
        scored = {trial.number: trial for trial in self.trials}

        def learnt(trial: Trial) -> Trial:
            first = trial if trial.same_as is None else scored[trial.same_as]
            return replace(first, params=trial.params)

        return [learnt(trial) for trial in self.trials if trial.is_point]


class Sampler(Protocol):
    """Proposes points of a space."""

    def propose(self, history: History) -> Point | None:
        """Propose the next point; None when the space is exhausted."""
