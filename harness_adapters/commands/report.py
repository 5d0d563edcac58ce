"""Tabulate results of lm-eval and OpenCompass as papers do: `merge-plugins report`.

One row per model, one column per task; then the average of each of lm-eval's groups that has no
score of its own, or of all tasks.
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
"""Metrics that papers on merging report, of tasks with several."""
PREFERRED = ("acc_norm", "exact_match", "pass@1", "acc", "EM", "F1", "f1", "accuracy", "score")
"""Metrics of other tasks: the first of these that the task has under exactly one filter."""
AVERAGE = "average"
UNBOUNDED = re.compile("perplexity|per_byte")
"""Metrics that are not shares in [0, 1]."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of models by tasks, and plot it if asked."""
    options = _parser().parse_args(argv)
    results = read(options.results)
    chosen = choose(results, dict(_pair(given) for given in options.metric), options.tasks)
    base, experts = sources(results, options.base, options.experts)
    table = tabulate(results, chosen, [*base, *experts])
    if options.normalise:
        normalise(table, results, chosen, experts)
    elif options.percent:
        in_percent(table, chosen)
    if options.normalise or options.percent or len(set(map(_is_lm_evals, chosen.values()))) == 1:
        add_averages(table, results, chosen)
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
    hidden = {
        task for group in results.groups if group in scored for task in _below(group, results)
    }
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


def sources(
    results: Results, base: str | None, experts: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Choose the rows of base and experts: as named, or else from the recipes of the merges."""
    models = list(dict.fromkeys(score.model for score in results.scores))
    bases = [recipe.get("base_model") for recipe in results.recipes.values()]
    merged = [
        entry.get("model")
        for recipe in results.recipes.values()
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


def tabulate(results: Results, chosen: Mapping[Task, str], first: Sequence[str]) -> Table:
    """Arrange scores in a table: rows in the order of ``first``, then the others by name."""
    scores = [score for score in results.scores if chosen.get(score.task) == score.metric]
    models = {score.model for score in scores}
    rows = [model for model in first if model in models] + sorted(models - {*first})
    titles = titled(chosen)
    cells = {(score.model, titles[score.task]): score.value for score in scores}
    return Table(rows, list(titles.values()), cells, _notes(chosen))


def titled(chosen: Mapping[Task, str]) -> dict[Task, str]:
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


def _notes(chosen: Mapping[Task, str]) -> list[str]:
    """Describe each metric in a line, with the columns that show it."""
    ways: dict[str, list[str]] = {}
    for task, title in titled(chosen).items():
        ways.setdefault(task.describe(chosen[task]), []).append(title)
    return [f"{way}: {', '.join(titles)}" for way, titles in ways.items()]


def normalise(
    table: Table, results: Results, chosen: Mapping[Task, str], experts: Sequence[str]
) -> None:
    """Divide each column by its best expert's score; Twin-Merging divides by the task's own."""
    if not experts:
        raise ReportError("--normalise divides by the experts' scores; name them with --experts.")
    lower = {score.task for score in results.scores if not score.higher_is_better
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


def add_averages(table: Table, results: Results, chosen: Mapping[Task, str]) -> None:
    """Add the mean of each group's columns, where a model has all of them."""
    for name, members in _averaged(results, titled(chosen)).items():
        table.columns.append(name)
        for model in table.rows:
            values = [table.cells[model, m] for m in members if (model, m) in table.cells]
            if len(values) == len(members):
                table.cells[model, name] = sum(values) / len(values)


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
