"""Take views of tensors that are not in memory, by torch's own operators.

What `narrow`, `select`, `transpose` and their like do is written once, for anything that can be cut
along a dimension and have its dimensions reordered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

aten = torch.ops.aten


class Viewed(Protocol):
    """A tensor of which views are taken without its elements."""

    @property
    def shape(self) -> torch.Size:
        """Sizes of its dimensions."""

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""

    def cut(self, dim: int, start: int, stop: int) -> Any:
        """Keep ``[start, stop)`` of one dimension, counted from 0."""

    def ordered(self, order: Sequence[int | None]) -> Any:
        """Reorder dimensions: None inserts one, those left out have size 1."""


def _same(it: Viewed, *_: Any, **__: Any) -> Any:
    return it.ordered(range(it.ndim))


def _reshaped(it: Viewed, size: Sequence[int]) -> Any:
    return _same(it) if tuple(size) == tuple(it.shape) else None


def _sliced(
    it: Viewed, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    if step != 1:
        return None
    dim %= it.ndim
    first, last, _ = slice(start, end).indices(it.shape[dim])
    return it.cut(dim, first, last)


def _selected(it: Viewed, dim: int, index: int) -> Any:
    dim, index = dim % it.ndim, index % it.shape[dim]
    return it.cut(dim, index, index + 1).ordered([at for at in range(it.ndim) if at != dim])


def _unbound(it: Viewed, dim: int = 0) -> list[Any]:
    return [_selected(it, dim, index) for index in range(it.shape[dim])]


def _split(it: Viewed, sizes: int | Sequence[int], dim: int = 0) -> list[Any]:
    dim %= it.ndim
    if isinstance(sizes, int):
        left = it.shape[dim]
        sizes = [min(sizes, left - at) for at in range(0, left, sizes)] if left else [0]
    stops = list(itertools.accumulate(sizes))
    return [it.cut(dim, stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


def _unsqueezed(it: Viewed, dim: int) -> Any:
    dim %= it.ndim + 1
    return it.ordered([*range(dim), None, *range(dim, it.ndim)])


def _squeezed(it: Viewed, dim: int) -> Any:
    return _selected(it, dim, 0) if it.shape[dim] == 1 else _same(it)


def _transposed(it: Viewed, first: int = 0, second: int = 1) -> Any:
    order = list(range(it.ndim))
    if order:
        order[first], order[second] = order[second], order[first]
    return it.ordered(order)


def _turned(it: Viewed) -> Any:
    return it.ordered(range(it.ndim)[::-1])


def _permuted(it: Viewed, order: Sequence[int]) -> Any:
    return it.ordered([dim % it.ndim for dim in order])


VIEWS: dict[Any, Callable[..., Any]] = {
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.permute.default: _permuted,
    aten.select.int: _selected,
    aten.slice.Tensor: _sliced,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.squeeze.dim: _squeezed,
    aten.t.default: _turned,
    aten.transpose.int: _transposed,
    aten.unbind.int: _unbound,
    aten.unsqueeze.default: _unsqueezed,
    aten.view.default: _reshaped,
}
"""What each view operator does; it returns None for views that need the elements."""
