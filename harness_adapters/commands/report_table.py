"""Write a table of models by tasks as Markdown, CSV or LaTeX, or plot it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from merge_plugins.errors import MergeError

MISSING = "–"  # noqa: RUF001


@dataclass
class Table:
    """Scores of models (rows) on tasks (columns); ``cells`` lacks those without a result."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], float]
    notes: list[str] = field(default_factory=list)

    def label(self, row: str) -> str:
        """Return a model's name without its folder, if no other model has the same."""
        short = Path(row).name
        return short if [Path(other).name for other in self.rows].count(short) == 1 else row

    def texts(self, missing: str = MISSING) -> list[list[str]]:
        """Format the head and the rows; scores have four decimals up to 1, two above."""
        body = [
            [
                self.label(row),
                *(
                    _digits(self.cells[row, column]) if (row, column) in self.cells else missing
                    for column in self.columns
                ),
            ]
            for row in self.rows
        ]
        return [["model", *self.columns], *body]


def _digits(value: float) -> str:
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def _markdown(table: Table) -> str:
    head, *body = table.texts()
    rules = ["---", *["---:"] * len(table.columns)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
             for line in (head, rules, *body)]  # fmt: skip
    return "\n".join([*lines, *[f"\n{note}" for note in table.notes]])


def _csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", *table.columns])
    for row in table.rows:
        values = [table.cells.get((row, column), "") for column in table.columns]
        writer.writerow([table.label(row), *values])
    return stream.getvalue().rstrip("\n")


def _latex(table: Table) -> str:
    head, *body = ([_escaped(cell) for cell in line] for line in table.texts("--"))
    lines = [
        *(f"% {note}" for note in table.notes),
        f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
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


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}


def plot(table: Table, file: Path, kind: str | None) -> None:
    """Plot the table as a ``radar``, the default from three columns on, or as ``bars``."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MergeError('--plot needs matplotlib: pip install "merge-plugins[report]"') from exc
    n_columns = len(table.columns)
    kind = kind or ("radar" if n_columns >= 3 else "bars")
    if kind == "radar" and n_columns < 3:
        raise MergeError(f"a radar needs three columns or more, not {n_columns}; use --kind bars")
    figure = Figure(figsize=(4 + max(4, 0.6 * n_columns), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection="polar" if kind == "radar" else None)
    for number, row in enumerate(table.rows):
        values = [table.cells.get((row, column), math.nan) for column in table.columns]
        if kind == "radar":
            turns = [2 * math.pi * i / n_columns for i in range(n_columns + 1)]
            axes.plot(turns, [*values, values[0]], label=table.label(row))
        else:
            width = 0.8 / len(table.rows)
            left = [i - 0.4 + (number + 0.5) * width for i in range(n_columns)]
            axes.bar(left, values, width, label=table.label(row))
    at = [2 * math.pi * i / n_columns for i in range(n_columns)]
    axes.set_xticks(at if kind == "radar" else range(n_columns), table.columns, fontsize="small")
    if kind == "radar":
        axes.tick_params("x", pad=20)
    elif n_columns > 2:
        axes.tick_params("x", rotation=30)
    figure.legend(loc="outside right upper", fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
