"""Choose, name and order the rows of a report: base, experts, then merges by what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from harness_adapters.commands.report_columns import Chosen, titled
from harness_adapters.commands.report_table import Cell, Table
from harness_adapters.commands.results import ReportError, Results
from merge_plugins.errors import did_you_mean
from merge_plugins.search.naming import differing


def sources(
    results: Results, base: str | None, experts: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Choose the rows of base and experts: as named, or else from the recipes of the merges."""
    models = list(dict.fromkeys(score.model for score in results.scores))
    bases = [_found(recipe.get("base_model"), models) for recipe in results.recipes.values()]
    merged = [
        _found(entry.get("model"), models)
        for recipe in results.recipes.values()
        for part in (recipe, *recipe.get("slices", ()))
        for entry in (*part.get("models", ()), *part.get("sources", ()))
    ]
    first = [_named(base, models, "--base")] if base else [m for m in models if m in bases]
    named = [_named(name, models, "--experts") for name in experts or ()]
    found = dict.fromkeys((*results.experts, *merged))
    return first, named or [m for m in found if m and m not in first]


def _found(ref: Any, models: Sequence[str]) -> str | None:
    """Find the model that a recipe names, whose path may have been relative when it was scored."""
    if not isinstance(ref, str):
        return None
    whole = PurePath(ref).as_posix()
    ends = (m for m in models if whole.endswith(f"/{PurePath(m).as_posix()}"))
    return ref if ref in models else next(ends, None)


def _named(name: str, models: Sequence[str], option: str) -> str:
    fitting = [m for m in models if m == name] or [m for m in models if PurePath(m).name == name]
    if len(fitting) != 1:
        raise ReportError(
            f"{option} {name}: {'several models are' if fitting else 'no model is'} called that"
            f"{did_you_mean(name, models)}; there are {', '.join(models)}"
        )
    return fitting[0]


def tabulate(results: Results, chosen: Chosen, first: Sequence[str]) -> Table:
    """Arrange scores in a table: the rows of ``first``, then merges by their settings."""
    scores = [score for score in results.scores if chosen.get(score.task) == score.metric]
    models = list(dict.fromkeys(score.model for score in scores))
    merges = [model for model in models if model in results.recipes]
    settings = _settings(results, merges)
    methods = {model: str(results.recipes[model].get("merge_method")) for model in merges}
    head = [model for model in first if model in models]

    names = dict.fromkeys(name for each in settings.values() for name in each)

    def order(model: str) -> tuple[Any, ...]:
        values = settings.get(model, {})
        return (methods.get(model, ""), [_natural(values.get(name)) for name in names], model)

    rows = head + sorted({*models} - {*head}, key=order)
    titles = titled(chosen)
    cells = {(s.model, titles[s.task]): Cell(s.value, s.stderr) for s in scores}
    table = Table(rows, list(titles.values()), cells, _labels(rows, methods, settings), settings)
    table.lower = {titles[score.task] for score in scores if not score.higher_is_better}
    table.ways = {title: task.describe(chosen[task]) for task, title in titles.items()}
    table.notes = _notes(table.ways)
    return table


def _settings(results: Results, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Find the settings in which the merges among some rows differ."""
    merges = [row for row in rows if row in results.recipes]
    found = differing([results.recipes[row] for row in merges])
    return dict(zip(merges, found, strict=True))


def _natural(value: Any) -> tuple[Any, ...]:
    """Sort numbers by value, before texts, and settings that are not there first."""
    is_number = isinstance(value, int | float)
    return (value is not None, not is_number, value if is_number else 0.0, str(value))


def _labels(
    rows: Sequence[str], methods: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Name each row: a merge by its method, another model without its folder.

    The whole name stands where that and the settings are the same for another row.
    """
    labels = {row: methods.get(row) or PurePath(row).name for row in rows}
    alike = [(labels[row], str(settings.get(row))) for row in rows]
    return {
        row: label if alike.count(seen) == 1 else row
        for (row, label), seen in zip(labels.items(), alike, strict=True)
    }


def _notes(ways: Mapping[str, str]) -> list[str]:
    """Describe each metric in a line, with the columns that show it."""
    columns: dict[str, list[str]] = {}
    for title, way in ways.items():
        columns.setdefault(way, []).append(title)
    return [f"{way}: {', '.join(titles)}" for way, titles in columns.items()]


def only(table: Table, results: Results, patterns: Sequence[str]) -> None:
    """Keep the rows that fit one of some patterns: of a name, or of a setting's value.

    Settings in which those do not differ are dropped.
    """
    for pattern in patterns:
        if not any(_fits(table, row, pattern) for row in table.rows):
            known = [*table.labels.values(), *table.rows]
            raise ReportError(f"--only {pattern}: no row of that{did_you_mean(pattern, known)}")
    table.rows = [row for row in table.rows if any(_fits(table, row, p) for p in patterns)]
    table.settings = _settings(results, table.rows)


def _fits(table: Table, row: str, pattern: str) -> bool:
    name, equals, value = pattern.partition("=")
    if equals and name in table.setting_names:
        return name in table.settings.get(row, {}) and fnmatchcase(table.setting(row, name), value)
    return any(fnmatchcase(each, pattern) for each in (row, table.labels[row]))


def sort(table: Table, column: str) -> None:
    """Order rows by a column of scores, best first, or by a setting, least first."""
    if column in table.setting_names:
        table.rows.sort(key=lambda row: _natural(table.settings.get(row, {}).get(column)))
        return
    if column not in table.columns:
        known = [*table.columns, *table.setting_names]
        hint = did_you_mean(column, known) or f"; there are {', '.join(known)}"
        raise ReportError(f"--sort {column}: no column of that{hint}")
    sign = 1 if column in table.lower else -1

    def key(row: str) -> tuple[bool, float]:
        cell = table.cells.get((row, column))
        return (cell is None, 0.0 if cell is None else sign * cell.value)

    table.rows.sort(key=key)
