"""Find which class of a model is which answer of a data set: by the names of labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness_adapters.lm_eval.classifiers.glue import GLUE
from merge_plugins.errors import RecipeError
from merge_plugins.planning.heads import n_labels
from merge_plugins.recipe import Task

UNNAMED = re.compile(r"(label_)?\d+")


def names_of(config: Mapping[str, Any]) -> list[str] | None:
    """List the names of classes in a config.json, in order; None if it names none."""
    named = config.get("id2label") or {}
    names = [str(named[key]) for key in sorted(named, key=int)]
    return None if all(UNNAMED.fullmatch(_plain(name)) for name in names) else names


def classes(task: Task, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the model's class of each answer, in the data set's order; none: it has a number.

    ``config``: the model's config.json.

    Where the model names no labels, or the data set's are not known, classes are in the data set's
    order. Raises `RecipeError` for names that do not fit.
    """
    known = GLUE.get(task.name, Task(task.name))
    wanted = task.labels or known.labels
    names, n_classes = names_of(config), n_labels(config)
    if n_classes == 1 and not wanted:
        return ()
    if wanted and len(wanted) != n_classes:
        raise RecipeError(
            f"{task.name} has {len(wanted)} labels ({', '.join(wanted)}), and its model has "
            f"{n_classes}: the head is of another task"
        )
    if not wanted and task.name in GLUE:
        raise RecipeError(
            f"{task.name} is answered by a number, and its model has {n_classes} labels: the head "
            "is of another task"
        )
    if names is None and task.labels:
        raise RecipeError(
            f"task: {task.name} has labels:, but the config of its model names none; delete them, "
            "or name them in id2label of its config.json"
        )
    if names is None or not wanted:
        return tuple(range(n_classes))
    return _matched(task, wanted, names)


def _matched(task: Task, wanted: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    plain = [_plain(name) for name in names]
    if {*plain} != {_plain(label) for label in wanted} or len({*plain}) < len(plain):
        raise RecipeError(
            f"the labels of {task.name} are {', '.join(wanted)}, and its model names its classes "
            f"{', '.join(names)}. Write the model's names in the data set's order: "
            f"task: {{name: {task.name}, labels: [{', '.join(map(repr, names))}]}}"
        )
    return tuple(plain.index(_plain(label)) for label in wanted)


def _plain(name: str) -> str:
    """Spell a label as data sets do: NOT ENTAILMENT is not_entailment."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")
