"""`merge-plugins report`: the table of a paper from what lm-eval and OpenCompass left on disk.

One row a model, one column a task; then the average of each of lm-eval's groups that has no score
of its own, or of all tasks.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness_adapters.commands.report_table import FORMATS, Table, plot
from harness_adapters.commands.results import ReportError, Results, Task, read
from merge_plugins.errors import did_you_mean

SHOWN: Mapping[str, str] = {
    "gsm8k": "exact_match,strict-match",
    "gsm8k_cot": "exact_match,strict-match",
    "gsm8k_cot_zeroshot_alpaca": "exact_match,strict-match",
    "gsm8k_cot_zeroshot_alpaca_fixed": "exact_match,strict-match",
    "gsm8k_alpaca_mergelm": "exact_match_mergelm,none",
    "math_alpaca_mergelm": "exact_match_mergelm,none",
    "winogrande": "acc,none",
}
"""The metric that papers on merging show, where a task has several."""
PREFERRED = ("acc_norm", "exact_match", "pass@1", "acc", "EM", "F1", "f1", "accuracy", "score")
"""For other tasks: the first of these that the task has under one filter."""
AVERAGE = "average"
UNBOUNDED = re.compile("perplexity|per_byte")
"""Metrics that are no shares."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the merge-by-task table of some results."""
    options = _parser().parse_args(argv)
    found = read(options.results)
    chosen = choose(found, dict(_pair(given) for given in options.metric), options.tasks)
    base, experts = sources(found, options.base, options.experts)
    table = tabulate(found, chosen, [*base, *experts])
    if options.normalise:
        normalise(table, found, chosen, experts)
    elif options.percent:
        in_percent(table, chosen)
    if options.normalise or options.percent or len(set(map(_is_lm_evals, chosen.values()))) == 1:
        add_averages(table, found, chosen)
    else:
        table.notes.append("no average: lm-eval's shares beside OpenCompass's percent; --percent")
    print(FORMATS[options.format](table))
    if options.format == "csv" and table.notes:
        print(*table.notes, sep="\n", file=sys.stderr)
    if options.plot:
        plot(table, options.plot, options.kind)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="merge-plugins report", description=__doc__)
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULTS", help="folders or files of results")
    add("--base", metavar="MODEL", help="the first row; else the base that the merges name")
    add("--experts", nargs="+", metavar="MODEL", help="the next rows; else those the merges name")
    add("--tasks", nargs="+", metavar="TASK", help="only these tasks or groups, in this order")
    add("--metric", action="append", default=[], metavar="TASK=METRIC", help="what to show of it")
    add("--normalise", action="store_true", help="percent of each task's best expert")
    add("--percent", action="store_true", help="lm-eval writes shares: times 100")
    add("--format", choices=FORMATS, default="markdown")
    add("--plot", type=Path, metavar="FILE.png", help="also draw the table")
    add("--kind", choices=("radar", "bars"), help="of plot; radar from three columns on")
    return parser


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals:
        raise ReportError(f"--metric {given}: expected TASK=METRIC, as in gsm8k=exact_match.")
    return name, value


def choose(
    found: Results, asked: Mapping[str, str], names: Sequence[str] | None = None
) -> dict[Task, str]:
    """Return the tasks that get a column, each with the metric to show of it.

    Those are the named ones, or else all but the parts of a group that has a score of its own.
    """
    metrics: dict[Task, list[str]] = {}
    for score in found.scores:
        of_task = metrics.setdefault(score.task, [])
        of_task += [] if score.metric in of_task else [score.metric]
    scored = dict.fromkeys(task.name for task in metrics)
    known = {*scored, *found.groups}
    for option, given in (("--tasks", names or ()), ("--metric", asked)):
        for name in given:
            if name not in known:
                raise ReportError(f"{option} {name}: no result of that{did_you_mean(name, known)}")
    hidden = {task for group in found.groups if group in scored for task in _below(group, found)}
    shown = [name for name in scored if name not in hidden or name in asked]
    if names:
        parts = [[name] if name in scored else _below(name, found) for name in names]
        shown = [name for part in parts for name in part if name in scored]
    return {
        task: _metric(task, metrics[task], asked.get(name))
        for name in dict.fromkeys(shown)
        for task in metrics
        if task.name == name
    }


def _below(group: str, found: Results) -> list[str]:
    """Return every task and group that is part of a group, in its order."""
    members = found.groups.get(group, [])
    return [name for member in members for name in (member, *_below(member, found))]


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


def sources(
    found: Results, base: str | None, experts: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the rows of base and experts: as named, or as the recipes of the merges say."""
    models = list(dict.fromkeys(score.model for score in found.scores))
    bases = [recipe.get("base_model") for recipe in found.recipes.values()]
    merged = [
        entry.get("model")
        for recipe in found.recipes.values()
        for part in (recipe, *recipe.get("slices", ()))
        for entry in (*part.get("models", ()), *part.get("sources", ()))
    ]
    first = [_named(base, models, "--base")] if base else [m for m in models if m in bases]
    named = [_named(name, models, "--experts") for name in experts or ()]
    return first, named or [m for m in dict.fromkeys(merged) if m in models and m not in first]


def _named(name: str, models: Sequence[str], option: str) -> str:
    fitting = [m for m in models if m == name] or [m for m in models if Path(m).name == name]
    if len(fitting) != 1:
        raise ReportError(
            f"{option} {name}: {'several models are' if fitting else 'no model is'} called that"
            f"{did_you_mean(name, models)}; there are {', '.join(models)}"
        )
    return fitting[0]


def tabulate(found: Results, chosen: Mapping[Task, str], first: Sequence[str]) -> Table:
    """Arrange scores: the first models, then the others by name."""
    scores = [score for score in found.scores if chosen.get(score.task) == score.metric]
    models = {score.model for score in scores}
    rows = [model for model in first if model in models] + sorted(models - {*first})
    titles = titled(chosen)
    cells = {(score.model, titles[score.task]): score.value for score in scores}
    return Table(rows, list(titles.values()), cells, _what_is_shown(chosen))


def titled(chosen: Mapping[Task, str]) -> dict[Task, str]:
    """Return each column's title: the task's name, with all that was measured if that is needed."""
    names = [task.name for task in chosen]
    titles = {
        task: task.name if names.count(task.name) == 1 else f"{task.name} ({task.said(metric)})"
        for task, metric in chosen.items()
    }
    every = list(titles.values())
    return {
        task: f"{title} version {task.version}" if every.count(title) > 1 else title
        for task, title in titles.items()
    }


def _what_is_shown(chosen: Mapping[Task, str]) -> list[str]:
    """Return a line for each way of measuring, with the columns measured so."""
    ways: dict[str, list[str]] = {}
    for task, title in titled(chosen).items():
        ways.setdefault(task.said(chosen[task]), []).append(title)
    return [f"{way}: {', '.join(titles)}" for way, titles in ways.items()]


def normalise(
    table: Table, found: Results, chosen: Mapping[Task, str], experts: Sequence[str]
) -> None:
    """Divide each column by its best expert's score, as Twin-Merging does by each task's own."""
    if not experts:
        raise ReportError("--normalise divides by the experts' scores; name them with --experts.")
    lower = {score.task for score in found.scores if not score.higher_is_better
             and chosen.get(score.task) == score.metric}  # fmt: skip
    for task, column in titled(chosen).items():
        if task in lower:
            raise ReportError(
                f"--normalise: a lower {column} is better, so a quotient says nothing; "
                "leave the task out with --tasks"
            )
        scores = {m: table.cells[m, column] for m in experts if (m, column) in table.cells}
        best = max(scores, key=lambda model: scores[model], default=None)
        if best is None or not scores[best]:
            raise ReportError(f"--normalise: no expert has a score above 0 in {column}.")
        for model in table.rows:
            if (model, column) in table.cells:
                table.cells[model, column] *= 100 / scores[best]
        table.notes.append(f"{column}: percent of {table.label(best)}'s {scores[best]:g}")


def in_percent(table: Table, chosen: Mapping[Task, str]) -> None:
    """Multiply lm-eval's shares by 100; OpenCompass writes percent."""
    for task, column in titled(chosen).items():
        if _is_lm_evals(chosen[task]) and not UNBOUNDED.search(chosen[task]):
            for model in table.rows:
                if (model, column) in table.cells:
                    table.cells[model, column] *= 100


def _is_lm_evals(metric: str) -> bool:
    return "," in metric  # its metrics name a filter


def add_averages(table: Table, found: Results, chosen: Mapping[Task, str]) -> None:
    """Add the mean of each group's columns, where a model has all of them."""
    for name, members in _averaged(found, titled(chosen)).items():
        table.columns.append(name)
        for model in table.rows:
            values = [table.cells[model, m] for m in members if (model, m) in table.cells]
            if len(values) == len(members):
                table.cells[model, name] = sum(values) / len(values)


def _averaged(found: Results, titles: Mapping[Task, str]) -> dict[str, list[str]]:
    """Return, for each average, the columns it is taken over."""
    averages: dict[str, list[str]] = {}
    scored = {task.name for task in titles}
    for group in found.groups:
        inside = [titles[task] for task in titles if task.name in _below(group, found)]
        if group not in scored and len(inside) > 1:
            averages[f"{AVERAGE} of {group}"] = inside
    if not averages and len(titles) > 1:
        averages[AVERAGE] = list(titles.values())
    return averages
