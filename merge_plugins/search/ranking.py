"""Rank recipes by their scores: by one number, or by Pareto's order where goals stand apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from merge_plugins.search.objective import Goal, Score

T = TypeVar("T")
Scores = Mapping[str, Score]


@dataclass(frozen=True)
class Ranking:
    """What makes one recipe better than another."""

    goals: Mapping[str, Goal]
    pareto: bool = False
    """Whether goals are never added up."""

    def sign(self, goal: str) -> float:
        """Return 1 where a higher score is better, else -1."""
        return 1.0 if self.goals[goal].higher_is_better else -1.0

    def total(self, scores: Scores) -> float:
        """Return the weighted mean of all goals; higher is better, whatever the goals are."""
        weights = {name: goal.weight for name, goal in self.goals.items()}
        summed = sum(weights[name] * self.sign(name) * scores[name].value for name in weights)
        return summed / sum(weights.values())

    def values(self, scores: Scores) -> list[float]:
        """Return what a sampler makes as high as it can: the total, or a number for each goal."""
        if not self.pareto:
            return [self.total(scores)]
        return [self.sign(name) * scores[name].value for name in self.goals]

    def shown(self, total: float) -> float:
        """Convert a total for people to read: a single goal that should be low is positive."""
        (first, *rest) = self.goals
        return total if rest else self.sign(first) * total

    def ordered(self, scored: Sequence[tuple[T, Scores]]) -> list[T]:
        """Order by total, best first and older first among equals; in Pareto's case the front."""
        if self.pareto:
            scored = self.front(scored)
        best_first = sorted(scored, key=lambda pair: -self.total(pair[1]))
        return [each for each, _ in best_first]

    def front(self, scored: Sequence[tuple[T, Scores]]) -> list[tuple[T, Scores]]:
        """Select what nothing else is better than in one goal and as good in all others."""
        values = [self.values(scores) for _, scores in scored]

        def dominated(own: Sequence[float]) -> bool:
            return any(
                other != own and all(o >= mine for o, mine in zip(other, own, strict=True))
                for other in values
            )

        return [each for each, own in zip(scored, values, strict=True) if not dominated(own)]


def on(scores: Scores, documents: Mapping[str, Sequence[str]]) -> dict[str, Score]:
    """Reduce scores to some documents; a goal that has none of its own stays as it is."""
    found = {}
    for name, score in scores.items():
        wanted = documents.get(name, ())
        same = not wanted or len(wanted) == len(score.documents) or not score.documents
        found[name] = score if same else of_documents({d: score.documents[d] for d in wanted})
    return found


def of_documents(values: Mapping[str, float]) -> Score:
    """Average documents; the standard error is that of their mean."""
    n = len(values)
    mean = math.fsum(values.values()) / n
    spread = math.fsum((value - mean) ** 2 for value in values.values())
    stderr = math.sqrt(spread / (n - 1) / n) if n > 1 else None
    return Score(mean, stderr, values)


def merged(first: Scores, second: Scores) -> dict[str, Score]:
    """Combine scores on different documents; a goal without documents is the second's."""
    found = {**first, **second}
    for name in first.keys() & second.keys():
        documents = {**first[name].documents, **second[name].documents}
        if documents:
            found[name] = of_documents(documents)
    return found


def without_documents(scores: Scores) -> dict[str, Score]:
    """Return the values and standard errors alone."""
    return {name: replace(score, documents={}) for name, score in scores.items()}
