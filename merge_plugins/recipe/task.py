"""Parse the recipe key `task:` of a model: which task its head answers.

    task: cola                                            as the harness names it
    task: {name: mnli, labels: [yes, maybe, no]}          with the model's names of the labels
    task: {name: imdb, columns: [text], labels: [neg, pos]}

``columns`` hold the texts of a row, one or two. ``labels`` are the model's names of the answers, in
the order in which the data set numbers them. A harness knows both of the tasks of GLUE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from merge_plugins.errors import RecipeError, nearest_or_all


@dataclass(frozen=True)
class Task:
    """A task that a model answers in labels, or with a number."""

    name: str
    columns: tuple[str, ...] = ()
    """Columns of a row that the model reads; none: the harness knows."""
    labels: tuple[str, ...] = ()
    """The model's names of the answers, as the data set numbers them; none: the harness knows."""

    def as_setting(self) -> str | dict[str, Any]:
        """Convert to the YAML value of ``task:``."""
        given = {"columns": list(self.columns), "labels": list(self.labels)}
        set_ = {key: value for key, value in given.items() if value}
        return {"name": self.name, **set_} if set_ else self.name


def from_setting(given: Any) -> Task | None:
    """Parse ``task``, or raise `RecipeError`."""
    if given is None or isinstance(given, Task):
        return given
    mapping = given if isinstance(given, Mapping) else {"name": given}
    known = [field.name for field in fields(Task)]
    for key in mapping:
        if key not in known:
            raise RecipeError(f"task: no key {key!r}{nearest_or_all(str(key), known)}")
    name = mapping.get("name")
    if not isinstance(name, str) or not name:
        raise RecipeError(f"task is a name, in quotes if need be; got {given!r}")
    columns, labels = (_words(key, mapping.get(key, ())) for key in ("columns", "labels"))
    if len(columns) > 2:
        raise RecipeError(f"task: columns are one or two; got {', '.join(columns)}")
    return Task(name, columns, labels)


def _words(key: str, given: Any) -> tuple[str, ...]:
    words = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for word in words:
        if not isinstance(word, str) or not word:
            raise RecipeError(f"task: {key} are names, in quotes ('no', 'yes'); got {word!r}")
    if len({*words}) < len(words):
        raise RecipeError(f"task: {key} are named once each; got {', '.join(words)}")
    return tuple(words)
