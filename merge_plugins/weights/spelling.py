"""Match the names of a checkpoint's tensors to a live model's, which differ in leading parts.

A head adds a prefix (``model.layers.0...`` and ``layers.0...`` are one weight), and adapters and
loaders add or drop more. `with_or_without` and `only_match` need the rest of the name to be equal;
`by_longest_tail` also matches names that share no more than their last parts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""A number between dots in a name; the first is that of the layer."""


def with_or_without(prefix: str, name: str, names: Collection[str]) -> str | None:
    """Find a name in ``names`` as it is, without or with the leading part ``prefix``, else None."""
    spellings = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((spelling for spelling in spellings if spelling in names), None)


def only_match(name: str, names: Collection[str]) -> str | None:
    """Find the only one of ``names`` that equals a name up to leading parts of either.

    None if there is no such name, or several of them and none is equal.
    """
    if name in names:
        return name
    close = [n for n in names if n.endswith(f".{name}") or name.endswith(f".{n}")]
    return close[0] if len(close) == 1 else None


def tails(name: str) -> Iterator[str]:
    """Yield a name without its first 0, 1, 2, ... parts, down to module and parameter."""
    parts = name.split(".")
    yield name
    for start in range(1, len(parts) - 1):
        yield ".".join(parts[start:])


def by_tail(named: Iterable[tuple[str, T]]) -> dict[str, set[T]]:
    """Collect the values of all names that share a tail: the table of `by_longest_tail`."""
    table: dict[str, set[T]] = {}
    for name, value in named:
        for tail in tails(name):
            table.setdefault(tail, set()).add(value)
    return table


def by_longest_tail(name: str, table: Mapping[str, set[T]], default: T) -> T:
    """Look up the longest tail of a name on whose value all names with that tail agree."""
    for tail in tails(name):
        values = table.get(tail, set())
        if len(values) == 1:
            return next(iter(values))
    return default
