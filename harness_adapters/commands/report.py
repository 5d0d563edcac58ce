"""Tabulate results of lm-eval and OpenCompass as papers do: `merge-plugins report`.

One row per model, merges with the settings in which they differ; one column per task, then the
average of each of lm-eval's groups that has no score of its own, or of all tasks. The best score of
each column is marked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness_adapters.commands.report_columns import (
    add_averages,
    add_means,
    are_comparable,
    choose,
    in_percent,
    normalise,
)
from harness_adapters.commands.report_rows import only, sort, sources, tabulate
from harness_adapters.commands.report_table import FORMATS, Table
from harness_adapters.commands.results import ReportError, read
from merge_plugins.cli import takes
from merge_plugins.commands.plot import check_plot

KINDS = ("curve", "heatmap", "bars", "radar")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULTS", help="folders or files of results")
    add("--base", metavar="MODEL", help="the first row; else the base that the merges name")
    add("--experts", nargs="+", metavar="MODEL", help="the next rows; else those the merges name")
    add("--only", nargs="+", metavar="ROW", help="only these rows: 'ties*', or density=0.5")
    add("--sort", metavar="COLUMN", help="order rows by a score, best first, or by a setting")
    add("--tasks", nargs="+", metavar="TASK", help="only these tasks or groups, in this order")
    metric = "what to show of it; the mean of several: mrpc=acc+f1"
    add("--metric", action="append", default=[], metavar="TASK=METRIC", help=metric)
    add("--normalise", action="store_true", help="percent of each task's best expert")
    add("--percent", action="store_true", help="lm-eval writes shares: times 100")
    add("--no-stderr", action="store_true", help="leave out standard errors")
    add("--format", choices=FORMATS, default="markdown")
    add("--plot", type=Path, metavar="FILE.png", help="also draw the table")
    add("--kind", choices=KINDS, help="of plot; a curve if merges differ in one number alone")
    add("--against", metavar="SETTING", help="draw scores against this number of the recipes")


@takes(_arguments, group="scores")
def main(options: argparse.Namespace) -> int:
    """Tabulate results of harnesses, models by tasks, and plot them."""
    if options.plot:
        check_plot(options.plot)
    table = _table(options)
    if options.plot:  # first: `| head` ends what is printed
        from harness_adapters.commands.report_plot import plot

        plot(table, options.plot, options.kind, options.against)
    print(FORMATS[options.format](table))
    if options.format == "csv" and table.notes:
        print(*table.notes, sep="\n", file=sys.stderr)
    return 0


def _table(options: argparse.Namespace) -> Table:
    results = read(options.results)
    asked = dict(_pair(given) for given in options.metric)
    add_means(results, asked)
    chosen = choose(results, asked, options.tasks)
    base, experts = sources(results, options.base, options.experts)
    table = tabulate(results, chosen, [*base, *experts])
    if options.no_stderr:
        table.without_errors()
    if options.normalise:
        normalise(table, chosen, experts)
    elif options.percent:
        in_percent(table, chosen)
    if options.normalise or options.percent or are_comparable(chosen):
        add_averages(table, results, chosen)
    else:
        table.notes.append("no average: lm-eval's shares beside OpenCompass's percent; --percent")
    if options.only:
        only(table, results, options.only)
    if options.sort:
        sort(table, options.sort)
    return table


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals:
        raise ReportError(f"--metric {given}: expected TASK=METRIC, as in gsm8k=exact_match.")
    return name, value
