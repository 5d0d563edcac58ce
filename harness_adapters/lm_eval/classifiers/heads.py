"""What is known of the head of each task before a model is loaded: texts it reads, its classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness_adapters.lm_eval.classifiers.glue import EIGHT, GLUE, SAME_HEAD, columns_of
from harness_adapters.lm_eval.classifiers.labels import classes, names_of
from merge_plugins.errors import RecipeError
from merge_plugins.recipe import Recipe
from merge_plugins.sources.models import model_folder
from merge_plugins.weights.files import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """The head that answers a task."""

    task: str
    columns: tuple[str, ...]
    """Columns of a row that it reads."""
    classes: tuple[int, ...]
    """Its class of each answer, in the data set's order; none: it answers with a number."""

    def check(self, request: Any) -> None:
        """Raise `RecipeError` for a request of lm-eval that it cannot answer."""
        has = f"{len(self.classes)} classes" if self.classes else "a number"
        said = f"and the head with task: {self.task} answers with {has}"
        if request.request_type == "generate_until":
            if self.classes:
                raise RecipeError(
                    f"{request.task_name} wants a text, {said}; a task with choices has "
                    "output_type: multiple_choice"
                )
        elif request.idx >= len(self.classes):
            raise RecipeError(f"{request.task_name} has {request.idx + 1} choices or more, {said}")


def heads_of(recipe: Recipe) -> dict[str, Head]:
    """Read the head of every task of a recipe; raises `RecipeError` for one that does not fit.

    What is taken for granted, as no model says it, the log says once.
    """
    recipe.for_task(next(iter(recipe.tasks), ""))  # raises where there is none
    found, unnamed = {}, []
    for name, entry in recipe.tasks.items():
        assert entry.task is not None, "it has a name"
        config = read_json(model_folder(entry.ref) / "config.json")
        columns = columns_of(name, entry.task.columns)
        found[name] = Head(name, columns, classes(entry.task, config))
        unnamed += [name] if found[name].classes and names_of(config) is None else []
    if unnamed:
        logger.warning(
            "the models of %s do not name their labels: class 0 is taken for the data set's label "
            "0, and so on",
            ", ".join(unnamed),
        )
    return found


def head_for(name: str, heads: Mapping[str, Head]) -> Head:
    """Find the head that answers a task of lm-eval, or raise `RecipeError`."""
    task = name if name in heads else SAME_HEAD.get(name, name)
    if task in heads:
        return heads[task]
    hint = f"; all of GLUE but WNLI is --tasks {EIGHT}" if task in GLUE else ""
    raise RecipeError(
        f"no model of this merge has task: {task}, which lm-eval asks for; there are "
        f"{', '.join(heads)}{hint}"
    )
