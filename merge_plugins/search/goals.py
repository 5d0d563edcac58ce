"""Read what a user writes of a goal: ``accuracy: {weight: 0.5, higher_is_better: true}``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.plugins.values import is_number
from merge_plugins.recipe import Recipe
from merge_plugins.search.objective import Goal, Score

SETTINGS = ("weight", "higher_is_better")


def read_goal(
    name: str,
    settings: Mapping[str, Any] | None,
    higher_is_better: bool = True,
    more: Sequence[str] = (),
) -> Goal:
    """Read a goal's settings, or raise `MergeError`.

    ``higher_is_better``: where they do not say. ``more``: settings that the caller has read.
    """
    if not isinstance(settings, Mapping | None):
        raise MergeError(f"{name}: settings of a goal are a mapping; got {settings!r}")
    settings = settings or {}
    for key in settings:
        if key not in SETTINGS:
            hint = did_you_mean(str(key), (*SETTINGS, *more))
            raise MergeError(f"{name}: no setting {key!r}{hint}")
    higher, weight = settings.get(SETTINGS[1], higher_is_better), settings.get(SETTINGS[0], 1)
    if not isinstance(higher, bool):
        raise MergeError(f"{name}: higher_is_better is true or false; got {higher!r}")
    if not is_number(weight) or not 0 <= weight < 1e9:
        raise MergeError(f"{name}: weight is a number, 0 or more; got {weight!r}")
    return Goal(higher, float(weight))


def read_goals(given: Mapping[str, Any], whose: str) -> dict[str, Goal]:
    """Read the goals of an objective that does not know them itself, or raise `MergeError`."""
    if not given:
        raise MergeError(
            f"name the numbers of {whose} that count, under tasks: "
            "{accuracy: {}, seconds: {higher_is_better: false}}"
        )
    return {name: read_goal(name, settings) for name, settings in given.items()}


def read_scores(found: Any, goals: Mapping[str, Goal], whose: str) -> dict[str, Score]:
    """Pick the goals' numbers out of what an objective returned, or raise `MergeError`.

    Other entries of the mapping are left out.
    """
    if not isinstance(found, Mapping):
        raise MergeError(
            f"{whose} gave {found!r:.200}; a mapping from names to numbers is expected"
        )
    scores = {}
    for name in goals:
        if name not in found:
            hint = did_you_mean(name, map(str, found)) or f"; it has {', '.join(map(str, found))}"
            raise MergeError(f"{whose} gave no {name!r}{hint}")
        scores[name] = _score(found[name], f"{name} of {whose}")
    return scores


def _score(value: Any, what: str) -> Score:
    if isinstance(value, Score):
        return value
    try:
        number = (
            math.nan if isinstance(value, str | bytes) else float(value)
        )  # numpy's, torch's too
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise MergeError(f"{what} is {value!r:.200}; a finite number is expected")
    return Score(number)


class Numbers(ABC):
    """The part of an `Objective` that scores a recipe as a whole, by numbers with names."""

    def __init__(self, goals: Mapping[str, Goal], whose: str) -> None:
        self._goals, self._whose = goals, whose

    @property
    def goals(self) -> Mapping[str, Goal]:
        """The numbers that count."""
        return self._goals

    @property
    def documents(self) -> Mapping[str, Sequence[str]]:
        """None: a recipe is scored as a whole."""
        return dict.fromkeys(self._goals, ())

    def score(
        self, recipe: Recipe, documents: Mapping[str, Sequence[str]] | None = None
    ) -> Mapping[str, Score]:
        """Score a recipe; by the goals that ``documents`` names, if it is given."""
        scores = read_scores(self.numbers(recipe), self._goals, self._whose)
        return {name: s for name, s in scores.items() if documents is None or name in documents}

    @abstractmethod
    def numbers(self, recipe: Recipe) -> Any:
        """Measure a recipe: a mapping from names to numbers, if all is well."""
