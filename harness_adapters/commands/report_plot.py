"""Draw a report: scores against a setting, a heat map, bars, or a radar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness_adapters.commands.report_table import Cell, Table
from merge_plugins.drawing import heat_map, new_figure, save, styles
from merge_plugins.errors import MergeError

MOST_ROWS = 8
"""Rows of which a radar or bars can still be read."""
NONE = Cell(math.nan)


def plot(table: Table, file: Path, kind: str | None, against: str | None) -> None:
    """Draw a table in the way that is asked for, or else in the one that suits it."""
    kind = kind or _fitting(table, against)
    draw: Mapping[str, Callable[[Table], Figure]] = {
        "curve": lambda table: _curve(table, _number(table, against)),
        "heatmap": _heatmap,
        "bars": _bars,
        "radar": _radar,
    }
    if not table.rows or not table.columns:
        raise MergeError("--plot: no scores to draw")
    save(draw[kind](table), file)


def _fitting(table: Table, against: str | None) -> str:
    if against or len(_numbers(table)) == len(table.setting_names) == 1:
        return "curve"
    if len(table.rows) > MOST_ROWS:
        return "heatmap"
    return "radar" if len(_tasks(table)) >= 3 else "bars"


def _tasks(table: Table) -> list[str]:
    return [column for column in table.columns if column not in table.averages]


def _numbers(table: Table) -> list[str]:
    """List the settings that are numbers, and differ."""

    def values(name: str) -> list[object]:
        own = (table.settings.get(row, {}) for row in table.rows)
        return [settings[name] for settings in own if name in settings]

    return [
        name
        for name in table.setting_names
        if len({*map(str, values(name))}) > 1
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values(name))
    ]


def _number(table: Table, asked: str | None) -> str:
    found = _numbers(table)
    if asked is None and len(found) == 1:
        return found[0]
    if asked not in found:
        what = f"{asked} is no number that differs" if asked else "against which setting?"
        shown = ", ".join(found) or "none"
        raise MergeError(f"--against: {what}. Numbers in which these merges differ: {shown}")
    return asked


def _metric(table: Table, columns: Sequence[str]) -> str:
    """Name the metric of an axis: the one of all columns, or the word for any."""
    ways = {table.ways[column].partition(",")[0] for column in columns if column in table.ways}
    metric = ways.pop() if len(ways) == 1 else "score"
    return f"{metric}, {table.unit}" if table.unit else metric


def _curve(table: Table, setting: str) -> Figure:
    """Draw scores against a number; a line for each task, or for each other setting of merges."""
    swept = [row for row in table.rows if setting in table.settings.get(row, {})]
    groups: dict[str, list[str]] = {}
    for row in sorted(swept, key=lambda row: float(table.settings[row][setting])):
        groups.setdefault(table.name(row, but=setting), []).append(row)
    averages = [column for column in table.columns if column in table.averages]
    columns = table.columns if len(groups) == 1 else (averages or table.columns)[:1]
    series = [(name, column) for name in groups for column in columns]
    figure = new_figure(8, 4.6)
    axes = figure.add_subplot()
    looks = styles(len(series) + len(table.rows) - len(swept))
    for (name, column), look in zip(series, looks, strict=False):
        rows = [row for row in groups[name] if (row, column) in table.cells]
        cells = [table.cells[row, column] for row in rows]
        axes.errorbar(
            [table.settings[row][setting] for row in rows],
            [cell.value for cell in cells],
            [cell.stderr or 0.0 for cell in cells],
            color=look.colour, marker=look.marker, ls=look.line, ms=5, capsize=3,
            lw=2.5 if len(columns) > 1 and column in table.averages else 1.2,
            label=column if len(groups) == 1 else name,
        )  # fmt: skip
    if len(columns) == 1 or averages:
        shown = averages[0] if averages else columns[0]
        models = [row for row in table.rows if row not in swept and (row, shown) in table.cells]
        for row, look in zip(models, looks[len(series) :], strict=False):
            level = table.cells[row, shown].value
            axes.axhline(level, color=look.colour, ls=":", lw=1.2)
            axes.annotate(table.labels[row], (1.0, level), xycoords=("axes fraction", "data"),
                          xytext=(4, 0), textcoords="offset points", va="center",
                          fontsize="x-small", color=look.colour)  # fmt: skip
        if models:
            axes.plot([], [], color="0.4", ls=":", label=f"{shown} of others")
    axes.set_xlabel(setting)
    axes.set_ylabel(columns[0] if len(groups) > 1 else _metric(table, columns))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _heatmap(table: Table) -> Figure:
    """Draw the table itself: each column from its worst score to its best, which has a frame."""
    shares = list(zip(*(_places(table, column) for column in table.columns), strict=True))
    names = [table.name(row) for row in table.rows]
    wide = 2.2 + 0.075 * max(map(len, names)) + 0.62 * len(table.columns)
    figure = new_figure(wide, 1.6 + 0.3 * len(table.rows))
    axes = figure.add_subplot()
    scale = Normalize(0.0, 1.0)
    image = heat_map(axes, shares, names, table.columns, norm=scale, written=_written(table))
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    for x, column in enumerate(table.columns):
        best = table.best(column)
        for y, row in enumerate(table.rows):
            if row in best:
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="red", lw=1.5, zorder=3)
                )
    if table.averages and _tasks(table):
        axes.axvline(len(_tasks(table)) - 0.5, color="white", lw=3)
    bar = figure.colorbar(image, ax=axes, aspect=20, shrink=0.5, pad=0.02, ticks=(0, 1))
    bar.ax.set_yticklabels(["worst of\nits column", "best"], fontsize="x-small")
    return figure


def _written(table: Table) -> list[list[str]]:
    cells = [[table.cells.get((row, column)) for column in table.columns] for row in table.rows]
    return [["" if cell is None else Cell(cell.value).text() for cell in line] for line in cells]


def _places(table: Table, column: str) -> list[float]:
    """Compute where each score of a column is between the worst of it, 0, and the best, 1."""
    found = [table.cells.get((row, column), NONE).value for row in table.rows]
    known = [value for value in found if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if high == low:
        return [value - value + 0.5 for value in found]  # not a number stays that
    shares = [(value - low) / (high - low) for value in found]
    return [1 - share for share in shares] if column in table.lower else shares


def _bars(table: Table) -> Figure:
    columns = table.columns
    figure = new_figure(4 + max(4, 0.12 * len(columns) * len(table.rows)), 4.8)
    axes = figure.add_subplot()
    width = 0.8 / len(table.rows)
    for number, (row, look) in enumerate(zip(table.rows, styles(len(table.rows)), strict=True)):
        cells = [table.cells.get((row, column), NONE) for column in columns]
        left = [i - 0.4 + (number + 0.5) * width for i in range(len(columns))]
        axes.bar(
            left, [cell.value for cell in cells], width, yerr=[c.stderr or 0.0 for c in cells],
            color=look.colour, hatch=look.hatch, edgecolor="white", capsize=2, ecolor="0.3",
            label=table.name(row),
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, fontsize="small", rotation=20, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    if table.averages and _tasks(table):
        axes.axvline(len(_tasks(table)) - 0.5, color="0.7", lw=1)
    axes.set_ylabel(_metric(table, columns))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _radar(table: Table) -> Figure:
    """Draw a spoke for each task; averages are none."""
    spokes = _tasks(table)
    n = len(spokes)
    if n < 3:
        raise MergeError(f"a radar needs three columns or more, not {n}; use --kind bars")
    figure = new_figure(9, 5.5)
    axes: Axes = figure.add_subplot(projection="polar")
    at = [2 * math.pi * i / n for i in range(n)]
    for row, look in zip(table.rows, styles(len(table.rows)), strict=True):
        values = [table.cells.get((row, column), NONE).value for column in spokes]
        axes.plot([*at, at[0]], [*values, values[0]], color=look.colour, marker=look.marker,
                  ls=look.line, ms=4, lw=1.4, label=table.name(row))  # fmt: skip
    axes.set_xticks(at, spokes, fontsize="small")
    for turn, label in zip(at, axes.get_xticklabels(), strict=True):  # beside the circle
        side = math.cos(turn)
        label.set_horizontalalignment(
            "center" if abs(side) < 0.1 else "left" if side > 0 else "right"
        )
    axes.tick_params("y", labelsize="x-small", labelcolor="0.4")
    axes.set_title(_metric(table, spokes), fontsize="small", color="0.4", pad=24)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
