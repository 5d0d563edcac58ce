"""Draw a comparison on one page: a heat map of layers by modules for each measure and models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.colors import Normalize

from merge_plugins.compare.comparison import Comparison
from merge_plugins.compare.numbers import Numbers
from merge_plugins.compare.places import Spot
from merge_plugins.compare.reading import percent
from merge_plugins.compare.sums import DENSITY, Pair
from merge_plugins.compare.text import change_name, pair_name
from merge_plugins.drawing import heat_map, new_figure, save

MOST_PAIRS = 6
"""Pairs drawn each on its own; of more, each model's mean with the others is drawn."""
BULK, LEAST = 0.98, 0.05
"""Share of all values that the colours span, and the least that they span to either side."""
Measure = Callable[[Numbers], float]


class Strip(NamedTuple):
    """A row of the page: one measure, of each model or pair."""

    title: str
    panels: dict[str, Measure]
    middle: float | None = None
    """Value of pure chance, drawn white; None: colours go from `low` up."""
    low: float | None = 0.0
    """None: the least value that there is."""
    top: float | None = None
    """Largest value of the colours; None: the largest that there is."""


def draw(comparison: Comparison, file: Path) -> None:
    """Draw all measures; one page, whatever the number of models."""
    strips, (rows, columns) = _strips(comparison), _axes(comparison)
    across = max(len(strip.panels) for strip in strips)
    wide, tall = 1.1 + 0.19 * len(columns), 0.6 + 0.16 * min(len(rows), 40)
    figure = new_figure(1.8 + across * wide, 2.6 + len(strips) * (tall + 0.35))
    grid = figure.add_gridspec(len(strips), across)
    for y, strip in enumerate(strips):
        scale, drawn = _scale(strip, comparison), []
        below = len(strips[y + 1].panels) if y + 1 < len(strips) else 0
        for x, (title, measure) in enumerate(strip.panels.items()):
            axes = figure.add_subplot(grid[y, x])
            image = heat_map(
                axes,
                [[_value(comparison, measure, row, column) for column in columns] for row in rows],
                [_row(layer) if x == 0 else "" for layer in rows],
                [column if x >= below else "" for column in columns],
                norm=scale,
                colours="viridis" if strip.middle is None else "RdBu_r",
            )
            axes.set_title(title, fontsize="small")
            drawn.append(axes)
        drawn[0].set_ylabel("layer", fontsize="small")
        bar = figure.colorbar(image, ax=drawn, aspect=12, pad=0.01, extend="max")
        bar.set_label(strip.title, fontsize="small")
        bar.ax.tick_params(labelsize="x-small")
        if strip.middle:  # a share
            bar.ax.set_ylim(bottom=max(0.0, scale.vmin or 0.0))
    figure.suptitle(_title(comparison), fontsize="medium")
    save(figure, file)


def _title(comparison: Comparison) -> str:
    if comparison.kind.has_base:
        return f"What each model changes in {comparison.names[0]}"
    return f"{', '.join(comparison.names)}: their weights, and how they differ"


def _strips(comparison: Comparison) -> list[Strip]:
    kind = comparison.kind
    changes = partial(_panels, comparison, kind.changes, change_name)
    pairs = partial(_panels, comparison, kind.pairs, pair_name)
    strips = [
        Strip("change / base" if kind.has_base else "distance / norm", changes(Numbers.norm)),
        Strip(f"in {comparison.directions} directions", changes(Numbers.energy), top=1.0),
        Strip("cosine", pairs(Numbers.cosine), 0.0),
        Strip("same signs", pairs(Numbers.signs), 0.5),
        Strip(f"same top {percent(DENSITY)}", pairs(Numbers.overlap), DENSITY),
    ]
    if not kind.has_base:  # weights of fine-tunes are alike: what little differs is drawn
        strips[2:] = [strip._replace(middle=None, low=None) for strip in strips[2:]]
    return [strip for strip in strips if strip.panels and (comparison.directions or not strip.top)]


def _panels(
    comparison: Comparison,
    pairs: Sequence[Pair],
    name: Callable[[Comparison, Pair], str],
    measure: Callable[[Numbers, Pair], float],
) -> dict[str, Measure]:
    """Draw each pair of models; of many, each model's mean with all others."""
    groups = {name(comparison, pair): [pair] for pair in pairs}
    if len(pairs) > MOST_PAIRS and len(pairs) >= comparison.kind.n_models:
        groups = {
            f"{comparison.names[i]}, others": [pair for pair in pairs if i in pair]
            for i in comparison.kind.compared
        }

    def mean(numbers: Numbers, group: Sequence[Pair]) -> float:
        return math.fsum(measure(numbers, pair) for pair in group) / len(group)

    return {title: partial(mean, group=group) for title, group in groups.items()}


def _axes(comparison: Comparison) -> tuple[list[int | None], list[str]]:
    """List layers and modules; those of weights outside any layer come last."""
    spots = [*comparison.spots]
    layers = sorted({spot.layer for spot in spots if spot.layer is not None})
    inside = dict.fromkeys(spot.module for spot in spots if spot.layer is not None)
    outside = dict.fromkeys(spot.module for spot in spots if spot.layer is None)
    return [*layers, *([None] if outside else [])], [*inside, *outside]


def _row(layer: int | None) -> str:
    return "none" if layer is None else str(layer)


def _value(comparison: Comparison, measure: Measure, layer: int | None, module: str) -> float:
    numbers = comparison.spots.get(Spot(layer, module))
    return math.nan if numbers is None else measure(numbers)


def _scale(strip: Strip, comparison: Comparison) -> Normalize:
    """Spread the colours over what nearly all values of the weights have.

    Norms hold few values, and often go together as nothing else does: their colours may saturate.
    """
    found = [
        (measure(numbers), float(numbers.sums.n))
        for measure in strip.panels.values()
        for numbers in comparison.spots.values()
    ]
    known = sorted(pair for pair in found if not math.isnan(pair[0]))
    if strip.middle is None:
        low = _quantile(known, 1 - BULK) if strip.low is None else strip.low
        return Normalize(low, strip.top or _quantile(known, BULK) or 1.0)
    reach = max(
        _quantile(known, BULK) - strip.middle, strip.middle - _quantile(known, 1 - BULK), LEAST
    )
    return Normalize(strip.middle - reach, strip.middle + reach)


def _quantile(weighted: Sequence[tuple[float, float]], share: float) -> float:
    """Find the value up to which a share of all weight lies; ``weighted``: sorted."""
    wanted = share * math.fsum(weight for _, weight in weighted)
    for value, weight in weighted:
        wanted -= weight
        if wanted <= 0:
            return value
    return weighted[-1][0] if weighted else 0.0
