"""Know the data sets of GLUE: their columns of text, and the names of their labels in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merge_plugins.errors import RecipeError
from merge_plugins.recipe import Task

ENTAILED = ("entailment", "not_entailment")

GLUE: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable")),
        Task("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
        Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
        Task("qnli", ("question", "sentence"), ENTAILED),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        Task("rte", ("sentence1", "sentence2"), ENTAILED),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("stsb", ("sentence1", "sentence2")),
        Task("wnli", ("sentence1", "sentence2"), ENTAILED[::-1]),
    )
}
"""Columns and labels of each task, by lm-eval's name; a number answers one without labels."""
SAME_HEAD: Mapping[str, str] = {"mnli_mismatch": "mnli"}
"""Tasks of lm-eval that the head of another one answers."""
EIGHT = "glue8"
"""Our group of the tasks that papers on merging score: all but WNLI."""


def columns_of(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Choose a task's columns of texts: those that the recipe names, or those known of GLUE.

    Raises `RecipeError` where neither says.
    """
    known = GLUE.get(SAME_HEAD.get(name, name), Task(name)).columns
    if not (given or known):
        raise RecipeError(
            f"{name} is no task of GLUE, so its columns of texts are not known; name them beside "
            f"the model: task: {{name: {name}, columns: [text]}}"
        )
    return tuple(given) or known
