"""Decide which weights are of heads, and refuse to merge the heads of different tasks.

Classifiers of two tasks may have heads of one shape, two labels each, whose average answers
neither. Configs may not tell: then heads are of one task only if they come from the head of a base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.recipe import Recipe, Reference
from merge_plugins.recipe.recipe import HEADS, NONE
from merge_plugins.sources import Source

KINDS = (
    *("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"),
    *("ForImageClassification", "ForAudioClassification"),
)
"""Endings of the classes whose head answers in labels."""
Sources = Mapping[Reference, Source]


def excluded_heads(recipe: Recipe, sources: Sources) -> frozenset[str]:
    """List the weights of heads that the recipe excludes; raise `MergeError` where it should.

    ``sources``: its models, in their own layouts.
    """
    if HEADS in recipe.exclude or _answer_tasks(recipe, sources):
        found = _heads(sources)
        if not found:
            raise RecipeError("exclude: heads, but no model of this merge has one; delete it")
        return found
    _refuse_two_tasks(recipe, sources)
    return frozenset()


def _answer_tasks(recipe: Recipe, sources: Sources) -> bool:
    """Whether models are classifiers with tasks of their own, so that their heads are apart."""
    if NONE in recipe.exclude:
        return False
    return any(_is_classifier(sources[model.ref]) for model in recipe.tasks.values())


def _heads(sources: Sources) -> frozenset[str]:
    from merge_plugins.hf.heads import head_of  # seconds: imports transformers

    return frozenset().union(*map(head_of, sources.values()))


def _refuse_two_tasks(recipe: Recipe, sources: Sources) -> None:
    """Raise `MismatchError` for heads that are merged and are, or may be, of different tasks."""
    if NONE in recipe.exclude or recipe.is_stack:
        return
    merged = dict.fromkeys(ref for slice_ in recipe.slices for ref in _refs(slice_.inputs))
    classifiers = {ref: sources[ref].config for ref in merged if _is_classifier(sources[ref])}
    base = sources[recipe.base_model] if recipe.base_model else None
    has_head = base is not None and _is_classifier(base)
    said = _differ(classifiers) or ("" if has_head else _open(classifiers))
    if not said:
        return
    if recipe.exclude:  # by parts of names
        heads = _heads({ref: sources[ref] for ref in classifiers})
        if all(map(recipe.is_excluded, heads)):
            return
    raise MismatchError(
        f"{said}. Write exclude: heads to merge all but the heads, with the head of the donor, "
        f"{recipe.donor}; or exclude: none if it is one task, to merge the heads too"
    )


def _refs(entries: Any) -> list[Reference]:
    return [entry.ref for entry in entries]


def _is_classifier(source: Source) -> bool:
    names = source.config.get("architectures") or ()
    return any(str(name).endswith(KINDS) for name in names)


def _differ(classifiers: Mapping[Reference, Mapping[str, Any]]) -> str:
    """Say what tells that classifiers are of different tasks; "" if nothing does."""
    tasks = {ref: _task(config) for ref, config in classifiers.items()}
    for key in next(iter(tasks.values()), {}):
        known = [(ref, task[key]) for ref, task in tasks.items() if task[key] is not None]
        for ref, given in known[1:]:
            if given != known[0][1]:
                return (
                    f"{known[0][0]} and {ref} are classifiers of different tasks: {key} is "
                    f"{known[0][1]} in the first and {given} in the second"
                )
    return ""


def _open(classifiers: Mapping[Reference, Mapping[str, Any]]) -> str:
    """Say which classifiers leave their task open; "" if none of several does."""
    unnamed = [ref for ref, each in classifiers.items() if _may_be_anything(each)]
    if len(classifiers) > 1 and unnamed:
        return (
            f"{' and '.join(map(str, classifiers))} are classifiers, and the config of "
            f"{unnamed[0]} names neither its labels nor its task, so that their heads may be of "
            "different tasks"
        )
    return ""


def _task(config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what a config says of its task; None where it says nothing."""
    labels = config.get("id2label")
    names = list(labels.values()) if isinstance(labels, Mapping) else None
    unnamed = names is None or names == [f"LABEL_{i}" for i in range(len(names))]
    return {
        "finetuning_task": config.get("finetuning_task"),
        "problem_type": config.get("problem_type"),
        "the number of labels": n_labels(config),
        "id2label": None if unnamed else names,
    }


def n_labels(config: Mapping[str, Any]) -> int:
    """Count the labels that a config lists; transformers writes none for two unnamed ones."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, Mapping) else int(config.get("num_labels") or 2)


def _may_be_anything(config: Mapping[str, Any]) -> bool:
    """Whether a config leaves the task open. One label is a score: rerankers are merged whole."""
    task = _task(config)
    return n_labels(config) != 1 and task["id2label"] is None and task["finetuning_task"] is None
