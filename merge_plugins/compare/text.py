"""Write a comparison as text, or as data for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from merge_plugins.compare.comparison import Comparison
from merge_plugins.compare.numbers import Numbers
from merge_plugins.compare.reading import percent, reading
from merge_plugins.compare.sums import DENSITY, Pair

MISSING = "–"  # noqa: RUF001
MOST_COLUMNS = 6
"""Models that get a column each in the tables of modules and layers."""


def as_text(comparison: Comparison) -> str:
    """Write the numbers of models, pairs, module types and layers, and what they mean."""
    blocks = [
        what(comparison),
        _changes(comparison),
        _pairs(comparison),
        _along("module", comparison.modules, comparison),
        _along("layer", comparison.layers, comparison),
        "\n".join(_beside(comparison)),
        "\n".join(f"* {line[0].upper()}{line[1:]}" for line in reading(comparison)),
    ]
    return "\n\n".join(block for block in blocks if block)


def what(comparison: Comparison) -> str:
    """Say in a line what is compared."""
    names, n = comparison.names, f"{comparison.n_weights} weights, {comparison.n_elements:,} values"
    if comparison.kind.has_base:
        return f"What each model changes in {names[0]}: {n}."
    return f"No base: the weights of {', '.join(names)} themselves, {n}. Name a base with --base."


def change_name(comparison: Comparison, change: Pair) -> str:
    """Name a change: the model's name, or from which model to which."""
    first, second = (comparison.names[i] for i in change)
    return second if comparison.kind.has_base else f"{first} to {second}"


def pair_name(comparison: Comparison, pair: Pair) -> str:
    """Name two models."""
    return ", ".join(comparison.names[i] for i in pair)


def _changes(comparison: Comparison) -> str:
    whole, directions = comparison.whole, comparison.directions
    size = "of its norm" if comparison.kind.has_base else "distance"
    head = ["model" if comparison.kind.has_base else "models", size]
    head += [f"in {directions} directions"] * bool(directions)
    head += ["unchanged"] * comparison.kind.has_base
    rows = []
    for change in comparison.kind.changes:
        row = [change_name(comparison, change), _percent(whole.norm(change))]
        row += [_percent(whole.energy(change))] * bool(directions)
        row += [_percent(whole.unchanged(change[1]))] * comparison.kind.has_base
        rows.append(row)
    return _table(head, rows)


def _pairs(comparison: Comparison) -> str:
    head = ["models", "cosine", "same signs", f"same top {percent(DENSITY)}"]
    rows = [
        [pair_name(comparison, pair), *_of_pairs(comparison.whole, [pair])]
        for pair in comparison.kind.pairs
    ]
    return _table(head, rows) if rows else ""


def _along(title: str, found: dict[Any, Numbers], comparison: Comparison) -> str:
    """Write a row for each module type or layer; numbers of pairs are means."""
    if not found:
        return ""
    kind = comparison.kind
    each = kind.has_base and len(kind.changes) <= MOST_COLUMNS
    head = [change_name(comparison, change) for change in kind.changes] if each else ["change"]
    head += ["cosine", "signs", f"top {percent(DENSITY)}"] if kind.pairs else []
    rows = []
    for name, numbers in found.items():
        norms = [numbers.norm(change) for change in kind.changes]
        shown = norms if each else [math.fsum(norms) / len(norms)]
        pairs = _of_pairs(numbers, kind.pairs) if kind.pairs else []
        rows.append([str(name), *map(_percent, shown), *pairs])
    return _table([title, *head], rows)


def _of_pairs(numbers: Numbers, pairs: Sequence[Pair]) -> list[str]:
    cosine, signs, overlap = (
        math.fsum(map(measure, pairs)) / len(pairs)
        for measure in (numbers.cosine, numbers.signs, numbers.overlap)
    )
    return [MISSING if math.isnan(cosine) else f"{cosine:.3f}", _percent(signs), _percent(overlap)]


def _beside(comparison: Comparison) -> Iterator[str]:
    """List what differs in configs and tokenizers, a line each."""
    for key, values in comparison.configs.items():
        shown = ", ".join(
            f"{value!r} in {name}" for name, value in zip(comparison.names, values, strict=True)
        )
        yield f"config  {key}: {shown}"
    for name, tokens in zip(comparison.names, comparison.tokenizers, strict=True):
        if tokens.said():
            yield f"tokenizer  {name}: {'; '.join(tokens.said())}"


def _percent(share: float) -> str:
    return MISSING if math.isnan(share) else percent(share, 1)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *others in (head, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return everything, for JSON; what is undefined is None."""
    names, kind = comparison.names, comparison.kind
    return {
        "base": names[0] if kind.has_base else None,
        "models": [names[i] for i in kind.compared],
        "references": [str(ref) for ref in comparison.models.all],
        "weights": comparison.n_weights,
        "values": comparison.n_elements,
        "density": DENSITY,
        "directions": comparison.directions,
        "whole": _numbers(comparison.whole, comparison),
        "parts": [
            {"layer": spot.layer, "module": spot.module, **_numbers(numbers, comparison)}
            for spot, numbers in comparison.spots.items()
        ],
        "left_out": dict(comparison.left_out),
        "configs": {
            key: dict(zip(names, values, strict=True)) for key, values in comparison.configs.items()
        },
        "tokenizers": {
            name: tokens.said() for name, tokens in zip(names, comparison.tokenizers, strict=True)
        },
        "reading": reading(comparison),
    }


def _numbers(numbers: Numbers, comparison: Comparison) -> dict[str, Any]:
    kind, names = comparison.kind, comparison.names
    found: dict[str, Any] = {
        "changes": [
            {
                **({"model": names[j]} if kind.has_base else {"models": [names[i], names[j]]}),
                "norm": _known(numbers.norm((i, j))),
                "energy": _known(numbers.energy((i, j))),
            }
            for i, j in kind.changes
        ],
        "pairs": [
            {
                "models": [names[i], names[j]],
                "cosine": _known(numbers.cosine((i, j))),
                "signs": _known(numbers.signs((i, j))),
                "overlap": _known(numbers.overlap((i, j))),
            }
            for i, j in kind.pairs
        ],
    }
    if kind.has_base and kind.pairs:
        found["dropped_by_ties"] = _known(numbers.dropped)
    return found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
