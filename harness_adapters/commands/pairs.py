"""Merge classifiers two by two and score each pair on the first one's task: `merge-plugins pairs`.

The recipe names the models and their tasks; every ordered pair of them is merged as the recipe says
and scored by lm-eval, in one process. Beside them stands what each model scores alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from harness_adapters.commands.report_columns import add_means, choose
from harness_adapters.commands.report_table import FORMATS, Cell, Table
from harness_adapters.commands.results import Results, add_lm_eval
from merge_plugins.errors import MergeError
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, read_recipe

ALONE, MEAN = "alone", "mean of pairs"
Run = tuple[str, str, Recipe]
"""Task that is scored, what its model is merged with, and the merge."""


def main(argv: Sequence[str] | None = None) -> int:
    """Merge classifiers two by two, and score each pair on the task of its first model."""
    options = vars(_parser().parse_args(argv))
    recipe, shown = read_recipe(options.pop("recipe")), options.pop("format")
    runs = [*_runs(recipe)]  # before lm-eval is imported, which takes seconds
    print(FORMATS[shown](_table(recipe, _scored(recipe, runs, options))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="merge-plugins pairs", description=__doc__)
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a YAML file whose models have task:")
    add("--format", choices=FORMATS, default="markdown")
    add("--batch_size", metavar="N", help="as of lm-eval, and so are all below")
    add("--device")
    add("--model_args", metavar="NAME=VALUE,…")
    add("--limit", type=float)
    add("--include_path", metavar="DIR")
    return parser


def _runs(recipe: Recipe) -> Iterator[Run]:
    """Iterate over the pairs; before those of a task stands its model alone."""
    if len(recipe.tasks) < 2 or recipe.is_stack:
        raise MergeError("pairs takes whole models, two or more of them with task: beside model:")
    for task, others in _by_first(recipe.tasks):
        yield task, ALONE, _only(recipe, task)
        for other in others:
            yield task, other, _only(recipe, task, other)


def _by_first(tasks: Any) -> Iterator[tuple[str, list[str]]]:
    pairs = [*permutations(tasks, 2)]
    for task in tasks:
        yield task, [other for first, other in pairs if first == task]


def _only(recipe: Recipe, task: str, *others: str) -> Recipe:
    """Copy a recipe with one model that answers a task, or two, in this order."""
    entries = tuple(recipe.tasks[name] for name in (task, *others))
    if not others:
        from harness_adapters.lm_eval.classifiers.experts import alone

        return alone(recipe, task)
    only = replace(recipe.slices[0], models=entries)
    pair = replace(recipe, slices=(only,), donor_model=entries[0].ref)
    return pair.normal(registry().get(recipe.merge_method))


def _scored(recipe: Recipe, runs: Sequence[Run], options: dict[str, Any]) -> Results:
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
