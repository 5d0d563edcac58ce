"""Choose the columns of a report: tasks, each with its metric, and averages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness_adapters.commands.report_table import Cell, Table
from harness_adapters.commands.results import ReportError, Results, Score, Task
from merge_plugins.errors import did_you_mean

SHOWN: Mapping[str, str] = {
    "gsm8k": "exact_match,strict-match",
    "gsm8k_cot": "exact_match,strict-match",
    "gsm8k_cot_zeroshot_alpaca": "exact_match,strict-match",
    "gsm8k_cot_zeroshot_alpaca_fixed": "exact_match,strict-match",
    "gsm8k_alpaca_mergelm": "exact_match_mergelm,none",
    "math_alpaca_mergelm": "exact_match_mergelm,none",
    "winogrande": "acc,none",
    "mrpc": "acc+f1",
    "qqp": "acc+f1",
    "stsb": "pearson+spearman",
}
"""Metrics that papers on merging report, of tasks with several; ``+``: their mean."""
PREFERRED = ("acc_norm", "exact_match", "pass@1", "acc", "EM", "F1", "f1", "accuracy", "score")
"""Metrics of other tasks: the first of these that the task has under exactly one filter."""
AVERAGE = "average"
UNBOUNDED = re.compile("perplexity|per_byte")
"""Metrics that are not shares in [0, 1]."""
Chosen = Mapping[Task, str]
"""The metric of each task that gets a column."""


def add_means(results: Results, asked: Mapping[str, str]) -> None:
    """Add the mean of several metrics of a task, where ``+`` joins them, as one more."""
    wanted, found = {**SHOWN, **asked}, dict[tuple[str, Task], dict[str, Score]]()
    for score in results.scores:
        found.setdefault((score.model, score.task), {})[score.metric] = score
    for (_, task), scores in found.items():
        names = wanted.get(task.name, "").split("+")
        for filter_ in dict.fromkeys(metric.partition(",")[2] for metric in scores):
            parts = [scores.get(f"{name},{filter_}") for name in names]
            some = [part for part in parts if part is not None]
            if len(names) > 1 and len(some) == len(names):
                mean = sum(part.value for part in some) / len(some)
                metric = f"{'+'.join(names)},{filter_}"
                results.scores.append(replace(some[0], metric=metric, value=mean, stderr=None))


def choose(
    results: Results, asked: Mapping[str, str], names: Sequence[str] | None = None
) -> dict[Task, str]:
    """Choose the tasks that get a column, each with its metric.

    Those are the named ones; by default all but the parts of a group with a score of its own.
    """
    metrics: dict[Task, list[str]] = {}
    for score in results.scores:
        of_task = metrics.setdefault(score.task, [])
        of_task += [] if score.metric in of_task else [score.metric]
    scored = dict.fromkeys(task.name for task in metrics)
    known = {*scored, *results.groups}
    for option, given in (("--tasks", names or ()), ("--metric", asked)):
        for name in given:
            if name not in known:
                raise ReportError(f"{option} {name}: no result of that{did_you_mean(name, known)}")
    hidden = parts_of_scored(results)
    shown = [name for name in scored if name not in hidden or name in asked]
    if names:
        parts = [[name] if name in scored else _below(name, results) for name in names]
        shown = [name for part in parts for name in part if name in scored]
    return {
        task: _metric(task, metrics[task], asked.get(name))
        for name in dict.fromkeys(shown)
        for task in metrics
        if task.name == name
    }


def parts_of_scored(results: Results) -> set[str]:
    """Name the tasks and groups that are part of a group with a score of its own."""
    scored = {score.task.name for score in results.scores}
    return {part for group in results.groups if group in scored for part in _below(group, results)}


def _below(group: str, results: Results) -> list[str]:
    """List the tasks and groups that are part of a group, at any depth, in its order."""
    members = results.groups.get(group, [])
    return [name for member in members for name in (member, *_below(member, results))]


def _metric(task: Task, names: Sequence[str], asked: str | None) -> str:
    wanted = [asked] if asked else [SHOWN.get(task.name, ""), *PREFERRED]
    for want in wanted:
        fitting = [name for name in names if want in (name, name.partition(",")[0])]
        if len(fitting) == 1:
            return fitting[0]
    if len(names) == 1 and not asked:
        return names[0]
    raise ReportError(
        f"{task.name}: {f'no one metric is {asked}' if asked else 'which metric?'} It has "
        f"{' '.join(names)}; choose one with --metric {task.name}={names[0]}"
    )


def titled(chosen: Chosen) -> dict[Task, str]:
    """Title each column by its task's name, with metric and version where names are equal."""
    names = [task.name for task in chosen]
    titles = {
        task: task.name if names.count(task.name) == 1 else f"{task.name} ({task.describe(metric)})"
        for task, metric in chosen.items()
    }
    every = list(titles.values())
    return {
        task: f"{title} version {task.version}" if every.count(title) > 1 else title
        for task, title in titles.items()
    }


def in_percent(table: Table, chosen: Chosen) -> None:
    """Multiply lm-eval's shares by 100; OpenCompass writes percent."""
    table.unit = "percent"
    for task, column in titled(chosen).items():
        if _is_lm_evals(chosen[task]) and not UNBOUNDED.search(chosen[task]):
            table.multiply(column, 100)


def are_comparable(chosen: Chosen) -> bool:
    """Whether all columns are lm-eval's shares, or none is."""
    return len(set(map(_is_lm_evals, chosen.values()))) == 1


def _is_lm_evals(metric: str) -> bool:
    return "," in metric  # its metrics name a filter


def normalise(table: Table, chosen: Chosen, experts: Sequence[str]) -> None:
    """Divide each column by its best expert's score; Twin-Merging divides by the task's own."""
    if not experts:
        raise ReportError("--normalise divides by the experts' scores; name them with --experts.")
    table.unit = "percent of the best expert's"
    for column in titled(chosen).values():
        if column in table.lower:
            raise ReportError(
                f"--normalise: a lower {column} is better, so a quotient says nothing; "
                "leave the task out with --tasks"
            )
        scores = {m: table.cells[m, column].value for m in experts if (m, column) in table.cells}
        best = max(scores, key=lambda model: scores[model], default=None)
        if best is None or not scores[best]:
            raise ReportError(f"--normalise: no expert has a score above 0 in {column}.")
        table.multiply(column, 100 / scores[best])
        table.notes.append(f"{column}: percent of {table.labels[best]}'s {scores[best]:g}")


def add_averages(table: Table, results: Results, chosen: Chosen) -> None:
    """Add the mean of each group's columns, where a model has all of them."""
    for name, members in _averaged(results, titled(chosen)).items():
        table.columns.append(name)
        table.averages.add(name)
        if {*members} <= table.lower:
            table.lower.add(name)
        for model in table.rows:
            cells = [table.cells[model, m] for m in members if (model, m) in table.cells]
            if len(cells) == len(members):
                table.cells[model, name] = _mean(cells)


def _mean(cells: Sequence[Cell]) -> Cell:
    """Average scores of different tasks, whose errors are independent."""
    errors = [cell.stderr for cell in cells if cell.stderr is not None]
    stderr = math.hypot(*errors) / len(cells) if len(errors) == len(cells) else None
    return Cell(sum(cell.value for cell in cells) / len(cells), stderr)


def _averaged(results: Results, titles: Mapping[Task, str]) -> dict[str, list[str]]:
    """List the columns of each average."""
    averages: dict[str, list[str]] = {}
    scored = {task.name for task in titles}
    for group in results.groups:
        inside = [titles[task] for task in titles if task.name in _below(group, results)]
        if group not in scored and len(inside) > 1:
            averages[f"{AVERAGE} of {group}"] = inside
    if not averages and len(titles) > 1:
        averages[AVERAGE] = list(titles.values())
    return averages
