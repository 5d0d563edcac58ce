"""A table of models by tasks: written as Markdown, CSV, LaTeX or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from merge_plugins.search.naming import plain

MISSING = "–"  # noqa: RUF001


class Cell(NamedTuple):
    """A score, with its standard error if there is one."""

    value: float
    stderr: float | None = None

    def text(self, between: str = "±") -> str:
        """Write it with four decimals up to 1, two above."""
        digits = 4 if abs(self.value) <= 1 else 2
        error = "" if self.stderr is None else f" {between} {self.stderr:.{digits}f}"
        return f"{self.value:.{digits}f}{error}"


@dataclass
class Table:
    """Scores of models (rows) on tasks (columns); ``cells`` lacks those without a result."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    labels: Mapping[str, str]
    """How each row is called."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of each merge that are not those of all merges."""
    lower: set[str] = field(default_factory=set)
    """Columns where a lower score is better."""
    averages: set[str] = field(default_factory=set)
    """Columns that are means of others."""
    ways: Mapping[str, str] = field(default_factory=dict)
    """Metric and shots of each column but averages."""
    notes: list[str] = field(default_factory=list)
    unit: str = ""
    """Unit of all scores, if they are not the harness's own."""

    @property
    def setting_names(self) -> list[str]:
        """Settings that any row has."""
        return list(dict.fromkeys(n for row in self.rows for n in self.settings.get(row, ())))

    def setting(self, row: str, name: str) -> str:
        """Write a row's setting as a recipe may give it; "" for none."""
        found = self.settings.get(row, {})
        return plain(found[name]) if name in found else ""

    def name(self, row: str, but: str | None = None) -> str:
        """Name a row in one text: its label, and the settings that differ, all ``but`` one."""
        shown = (f"{n}={plain(v)}" for n, v in self.settings.get(row, {}).items() if n != but)
        return " ".join([self.labels[row], *shown])

    def best(self, column: str) -> set[str]:
        """Find the rows with the best score of a column, if there are others."""
        scores = {row: self.cells[row, column].value for row in self.rows
                  if (row, column) in self.cells}  # fmt: skip
        if len({*scores.values()}) < 2:
            return set()
        best = (min if column in self.lower else max)(scores.values())
        return {row for row, score in scores.items() if score == best}

    def multiply(self, column: str, factor: float) -> None:
        """Multiply the scores of a column, and their errors."""
        for row in self.rows:
            if (row, column) in self.cells:
                value, stderr = self.cells[row, column]
                error = None if stderr is None else stderr * factor
                self.cells[row, column] = Cell(value * factor, error)

    def without_errors(self) -> None:
        """Drop all standard errors."""
        self.cells = {at: Cell(cell.value) for at, cell in self.cells.items()}


def _texts(
    table: Table, bold: str, missing: str, between: str, escape: Callable[[str], str]
) -> list[list[str]]:
    """Format the head and the rows; the best of each column are bold."""
    names = table.setting_names
    best = {column: table.best(column) for column in table.columns}
    lines = [[escape(text) for text in ("model", *names, *table.columns)]]
    for row in table.rows:
        line = [escape(table.labels[row]), *(escape(table.setting(row, name)) for name in names)]
        for column in table.columns:
            cell = table.cells.get((row, column))
            text = missing if cell is None else cell.text(between)
            line.append(bold.format(text) if row in best[column] else text)
        lines.append(line)
    return lines


def _markdown(table: Table) -> str:
    head, *body = _texts(table, "**{}**", MISSING, "±", lambda text: text.replace("|", "\\|"))
    rules = ["---", *["---:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(line) + " |" for line in (head, rules, *body)]
    return "\n".join([*lines, *[f"\n{note}" for note in table.notes]])


def _csv(table: Table) -> str:
    """Write every digit, and standard errors as columns of their own."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = table.setting_names
    with_error = {column for (_, column), cell in table.cells.items() if cell.stderr is not None}
    head = ["model", *names]
    for column in table.columns:
        head += [column, f"{column} stderr"] if column in with_error else [column]
    writer.writerow(head)
    for row in table.rows:
        line: list[Any] = [table.labels[row], *(table.setting(row, name) for name in names)]
        for column in table.columns:
            value, stderr = table.cells.get((row, column), (None, None))
            line += [value, stderr] if column in with_error else [value]
        writer.writerow(line)
    return stream.getvalue().rstrip("\n")


def _latex(table: Table) -> str:
    head, *body = _texts(table, "\\textbf{{{}}}", "--", "$\\pm$", _escaped)
    n_settings = len(table.setting_names)
    lines = [
        *(f"% {note}" for note in table.notes),
        f"\\begin{{tabular}}{{l{'r' * (n_settings + len(table.columns))}}}",
        "\\toprule",
        " & ".join(head) + r" \\",
        "\\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _json(table: Table) -> str:
    def scores(row: str) -> dict[str, Any]:
        found = ((column, table.cells.get((row, column))) for column in table.columns)
        return {column: cell._asdict() for column, cell in found if cell is not None}

    rows = [
        {
            "model": row,
            "label": table.labels[row],
            "settings": dict(table.settings.get(row, {})),
            "scores": scores(row),
        }
        for row in table.rows
    ]
    columns = {
        column: {
            "metric": table.ways.get(column),
            "lower_is_better": column in table.lower,
            "best": sorted(table.best(column)),
        }
        for column in table.columns
    }
    return json.dumps({"columns": columns, "rows": rows, "notes": table.notes}, indent=2)


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
