"""Merge the models of a recipe two by two, score each pair, and tabulate what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness_adapters.commands.report_columns import add_means, choose
from harness_adapters.commands.report_table import Cell, Table
from harness_adapters.commands.results import Results, add_lm_eval
from merge_plugins.errors import MergeError
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, read_recipe

ALONE, MEAN = "alone", "mean of pairs"
Run = tuple[str, str, Recipe]
"""Task that is scored, what its model is merged with, and the merge."""


def table_of_pairs(given: str, options: Mapping[str, Any]) -> Table:
    """Tabulate every ordered pair of a recipe's models; ``options`` are those of an `Evaluator`."""
    recipe = read_recipe(given)
    runs = [*_runs(recipe)]  # before lm-eval is imported, which takes seconds
    return _table(recipe, _scored(recipe, runs, options))


def _runs(recipe: Recipe) -> Iterator[Run]:
    """Iterate over the pairs; before those of a task stands its model alone."""
    if len(recipe.tasks) < 2 or recipe.is_stack:
        raise MergeError("pairs takes whole models, two or more of them with task: beside model:")
    from harness_adapters.lm_eval.classifiers.experts import alone

    for task in recipe.tasks:
        yield task, ALONE, alone(recipe, task)
        for other in recipe.tasks:
            if other != task:
                yield task, other, _pair(recipe, task, other)


def _pair(recipe: Recipe, task: str, other: str) -> Recipe:
    """Copy a recipe with the models of two tasks, in this order."""
    entries = (recipe.tasks[task], recipe.tasks[other])
    only = replace(recipe.slices[0], models=entries)
    pair = replace(recipe, slices=(only,), donor_model=entries[0].ref)
    return pair.normal(registry().get(recipe.merge_method))


def _scored(recipe: Recipe, runs: Sequence[Run], options: Mapping[str, Any]) -> Results:
    from harness_adapters.lm_eval import Evaluator

    given = {name: value for name, value in options.items() if value is not None}
    collected = Results()
    tasks = [*recipe.tasks]
    with Evaluator(
        tasks, model="merged-classifiers", progress=False, bootstrap_iters=0, **given
    ) as evaluator:
        for task, other, merge in runs:
            found = evaluator.results(merge, {task: evaluator.documents[task]})
            add_lm_eval({**found, "model_name": other}, collected)
    return collected


def _table(recipe: Recipe, results: Results) -> Table:
    add_means(results, {})
    chosen = choose(results, {})
    cells = {
        (score.task.name, score.model): Cell(score.value)
        for score in results.scores
        if chosen[score.task] == score.metric
    }
    tasks = [*recipe.tasks]
    for task in tasks:
        pairs = [cells[task, other].value for other in tasks if other != task]
        cells[task, MEAN] = Cell(sum(pairs) / len(pairs))
    notes = [f"{task.name}: {task.describe(metric)}" for task, metric in chosen.items()]
    labels = {task: task for task in tasks}
    return Table(tasks, [ALONE, *tasks, MEAN], cells, labels, notes=notes)
