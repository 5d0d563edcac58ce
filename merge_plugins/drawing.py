"""Draw pictures that look alike: styles that do not repeat, heat maps whose cells can be read.

Imports matplotlib, which is in the extras: imported where a picture is asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from merge_plugins.errors import MergeError

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#000000", "#8c564b", "#7f7f7f", "#6a3d9a"),
)
"""Colours that people tell apart, also with most kinds of colour blindness [Okabe & Ito 2008]."""
MARKERS, LINES, HATCHES = "osD^vPX*", ("-", "--", ":", "-."), ("", "//", "..", "xx", "\\\\")
NOTHING = "0.93"
"""Colour of cells without a value."""


class Style(NamedTuple):
    """How one series is drawn: no two of the first forty have the same colour and line."""

    colour: str
    marker: str
    line: str
    hatch: str


def styles(count: int) -> list[Style]:
    """Return a style for each of so many series."""
    rounds = ((turn, colour) for turn in itertools.count() for colour in COLOURS)
    return [
        Style(colour, MARKERS[i % len(MARKERS)], LINES[turn % 4], HATCHES[turn % 5])
        for i, (turn, colour) in enumerate(itertools.islice(rounds, count))
    ]


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches, that no window shows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check(file: Path) -> None:
    """Raise `MergeError` unless the file's name ends with a format that can be written."""
    formats = sorted(FigureCanvasAgg.get_supported_filetypes())
    if file.suffix.lower().removeprefix(".") not in formats:
        raise MergeError(f"{file}: a picture's name ends with .png, .pdf or .svg")


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format that the file's name ends with."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def heat_map(
    axes: Axes,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    norm: Normalize,
    colours: str = "viridis",
    written: Sequence[Sequence[str]] | None = None,
) -> AxesImage:
    """Draw rows by columns; cells without a value, NaN, are grey.

    ``written``: what stands in each cell.
    """
    shades: Colormap = colormaps[colours].with_extremes(bad=NOTHING)
    image = axes.imshow(values, cmap=shades, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize="x-small",
                    rotation_mode="anchor")  # fmt: skip
    every = max(1, math.ceil(len(rows) / 24))
    axes.set_yticks(range(0, len(rows), every), rows[::every], fontsize="x-small")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, (line, texts) in enumerate(zip(values, written or (), strict=False)):
        for x, (value, text) in enumerate(zip(line, texts, strict=True)):
            if not math.isnan(value):
                _write(axes, image, (x, y), value, text)
    return image


def _write(axes: Axes, image: AxesImage, at: tuple[int, int], value: float, text: str) -> None:
    shade = image.cmap(image.norm(np.array([value])))
    red, green, blue, _ = np.ravel(shade)
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    axes.text(*at, text, ha="center", va="center", fontsize="x-small",
              color="white" if is_dark else "black")  # fmt: skip
