"""The models of a merge, each alone on its own task: what a merge is measured against."""

from __future__ import annotations

import hashlib
from typing import Any

from merge_plugins.identity import model_identity, tokenizer_identity
from merge_plugins.outputs.classifiers import Classifiers
from merge_plugins.plugins import registry
from merge_plugins.recipe import Entry, Rebased, Recipe, Slice
from merge_plugins.tokenizer import tokenizer_folder

UNMERGED = "average_merging"
"""A method that returns its only model as it is."""


class Experts:
    """Answer each task by its own model, one in memory at a time."""

    def __init__(self, recipe: Recipe, **kwargs: Any) -> None:
        self.recipe, self._kwargs = recipe, kwargs
        self._live: Classifiers | None = None
        for task in recipe.tasks:
            alone(recipe, task)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of their models."""
        return tuple(self.recipe.tasks)

    def for_task(self, task: str) -> tuple[Any, Any]:
        """Load the model of a task, in place of the one before, and its tokenizer."""
        if self._live is None or self._live.tasks != (task,):
            self._live = None  # before another takes as much memory
            self._live = Classifiers(alone(self.recipe, task), **self._kwargs)
        return self._live.for_task(task)


def alone(recipe: Recipe, task: str) -> Recipe:
    """Compose the recipe of one task's model, unmerged."""
    entry = recipe.for_task(task).tasks[task]
    ref = entry.ref.model if isinstance(entry.ref, Rebased) else entry.ref
    only = Slice((Entry(ref, task=entry.task),))
    found = Recipe(UNMERGED, (only,), dtype=recipe.dtype, out_dtype=recipe.out_dtype)
    return found.normal(registry().get(UNMERGED))


def digest(recipe: Recipe) -> str:
    """Hash the models of a recipe's tasks, whatever merges them: 12 hex digits."""
    parts = [f"{recipe.out_dtype or recipe.dtype}"]
    for task in recipe.tasks:
        only = alone(recipe, task)
        folder = tokenizer_folder(only)
        parts += [task, model_identity(only.donor), tokenizer_identity(str(folder))]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
