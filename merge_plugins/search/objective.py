"""The contract between a search and what scores its recipes; a harness's adapter implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from merge_plugins.recipe import Recipe


@dataclass(frozen=True)
class Goal:
    """One number that a search makes as high, or as low, as it can."""

    higher_is_better: bool = True
    weight: float = 1.0
    """Its share where several goals are added up to one."""


@dataclass(frozen=True)
class Score:
    """One goal's value for one recipe."""

    value: float
    stderr: float | None = None
    documents: Mapping[str, float] = field(default_factory=dict)
    """The value of each document by its id; empty where the value is not a mean of documents."""


class Objective(Protocol):
    """What scores recipes: a harness's tasks, a function, a command."""

    @property
    def goals(self) -> Mapping[str, Goal]:
        """What is scored, by name."""

    @property
    def identity(self) -> str:
        """What scores depend on besides the recipe: tasks, few-shot examples, seeds, versions.

        Scores of another identity are never compared.
        """

    @property
    def documents(self) -> Mapping[str, Sequence[str]]:
        """Ids of all documents of each goal, in order; empty where a goal has none."""

    def score(
        self, recipe: Recipe, documents: Mapping[str, Sequence[str]] | None = None
    ) -> Mapping[str, Score]:
        """Score a recipe by each goal on all documents; or by the goals that ``documents`` names.

        Then those are scored on the documents listed; a goal that has none is scored as a whole.
        """

    def close(self) -> None:
        """Free the model, and whatever else is held from one recipe to the next."""


@runtime_checkable
class Benchmarks(Protocol):
    """What an `Objective` of a harness has besides."""

    @property
    def test_tasks(self) -> Sequence[str]:
        """Names of the tasks that are scored on their test split."""

    def separately(self, recipe: Recipe) -> Mapping[str, Score]:
        """Score a recipe on all documents by the harness's ordinary path, all anew."""
