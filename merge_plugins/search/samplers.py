"""Choose which recipe of a space is tried next: grid and random here, the others by Optuna."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from merge_plugins.errors import MergeError, nearest_or_all
from merge_plugins.installing import to_install
from merge_plugins.search.dimensions import Choice, Dimension, Range, Value
from merge_plugins.search.history import History, Sampler
from merge_plugins.search.ranking import Ranking
from merge_plugins.search.space import Point, Space

LARGEST_GRID = 100_000
OPTUNAS = ("tpe", "cmaes", "gp", "nsga2")
NAMES = (*OPTUNAS, "random", "grid")


@dataclass(frozen=True)
class Random:
    """Draws every dimension evenly, independent of what was scored."""

    space: Space
    seed: int = 0

    def propose(self, history: History) -> Point:
        """Draw a point that depends on how many were drawn before."""
        n_before = len(history.points) + len(history.running)
        return self.space.draw(_evenly(random.Random(f"{self.seed} {n_before}")))


def _evenly(rng: random.Random) -> Callable[[Dimension], Value]:
    def suggest(asked: Dimension) -> Value:
        if isinstance(asked, Choice):
            return rng.choice(asked.labels)
        if asked.step is not None or (asked.integer and not asked.log):
            return rng.choice(asked.points)
        if asked.log:
            return math.exp(rng.uniform(math.log(asked.low), math.log(asked.high)))
        return rng.uniform(asked.low, asked.high)

    return suggest


class Grid:
    """Tries every combination, in a random order: what is cut short still covers the space."""

    def __init__(self, space: Space, seed: int = 0) -> None:
        self._points = list(itertools.islice(combinations(space), LARGEST_GRID + 1))
        if len(self._points) > LARGEST_GRID:
            raise MergeError(
                f"a grid of more than {LARGEST_GRID:,} recipes; take larger steps, or sampler: tpe"
            )
        random.Random(seed).shuffle(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def propose(self, history: History) -> Point | None:
        """Return the first point that nobody tried."""
        tried = [trial.params for trial in history.points] + list(history.running)
        return next((point for point in self._points if point.params not in tried), None)


def combinations(space: Space) -> Iterator[Point]:
    """Iterate over all points of a space, like an odometer over the dimensions that are reached."""
    digits: list[int] | None = []
    while digits is not None:
        sizes: list[int] = []

        def suggest(asked: Dimension, given: Sequence[int] = tuple(digits)) -> Value:
            i = len(sizes)  # noqa: B023  # called within this turn
            sizes.append(len(asked.points))  # noqa: B023
            return asked.points[given[i] if i < len(given) else 0]

        yield space.draw(suggest)
        digits = _next(digits + [0] * (len(sizes) - len(digits)), sizes)


def _next(digits: Sequence[int], sizes: Sequence[int]) -> list[int] | None:
    """Count one up: the last digit that is not at its end rises, those after it are dropped."""
    for i in reversed(range(len(sizes))):
        if digits[i] + 1 < sizes[i]:
            return [*digits[:i], digits[i] + 1]
    return None


def sampler(name: str, space: Space, ranking: Ranking, seed: int = 0) -> Sampler:
    """Build a sampler by name, or raise `MergeError` if it does not fit the space and the goals."""
    if name not in NAMES:
        hint = nearest_or_all(name, NAMES)
        raise MergeError(f"search: no sampler {name!r}{hint}")
    if name == "grid":
        return Grid(space, seed)
    if name == "random":
        return Random(space, seed)
    if find_spec("optuna") is None:
        raise MergeError(
            f"sampler: {name} is Optuna's: {to_install('search')}; random and grid need nothing"
        )
    if ranking.pareto and name == "cmaes":
        raise MergeError("pareto: cmaes makes one number best; take tpe, nsga2, gp or random")
    n_ranges = sum(isinstance(d, Range) for d in space.dimensions.values())
    if name == "cmaes" and n_ranges < 2:
        raise MergeError("cmaes needs two or more ranges of numbers; take tpe, gp or random")
    from merge_plugins.search.by_optuna import ByOptuna

    return ByOptuna(name, space, ranking, seed)
