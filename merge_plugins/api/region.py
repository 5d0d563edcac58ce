"""Regions of a weight: boxes of half-open ranges, one per dimension."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A box of a weight: one half-open range per dimension of the whole shape."""

    shape: tuple[int, ...]
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """Return the region that covers all of a weight."""
        return cls(tuple(shape), tuple((0, size) for size in shape))

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Shape of the box."""
        return tuple(stop - start for start, stop in self.bounds)

    @functools.cached_property
    def numel(self) -> int:
        """Number of elements in the box."""
        return math.prod(self.sizes)

    @functools.cached_property
    def span(self) -> tuple[int, int] | None:
        """Flat half-open range of a box that lies in one piece in memory, else None."""
        sizes = self.sizes
        free = next((i for i, n in enumerate(sizes) if n != 1), len(sizes))
        if sizes[free + 1 :] != self.shape[free + 1 :]:
            return None
        return self.start, self.start + self.numel

    @functools.cached_property
    def start(self) -> int:
        """Flat position of the first element in the whole tensor."""
        strides = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        return sum(start * stride for (start, _), stride in zip(self.bounds, strides, strict=True))

    def of(self, tensor: Tensor) -> Tensor:
        """View this box of a whole tensor."""
        return tensor[tuple(slice(start, stop) for start, stop in self.bounds)]

    def of_rows(self, values: Tensor) -> Tensor:
        """View one value per row of the whole weight, [*shape[:-1]], so that it meets this box."""
        if not self.shape:
            return values
        return values[tuple(slice(*bounds) for bounds in self.bounds[:-1])].unsqueeze(-1)

    def rows(self) -> Region:
        """Extend the box to whole rows: all of the last dimension."""
        return Region(self.shape, (*self.bounds[:-1], *((0, size) for size in self.shape[-1:])))

    def shared(self, other: Region) -> Region:
        """Intersect with another box of the same weight."""
        pairs = zip(self.bounds, other.bounds, strict=True)
        return Region(self.shape, tuple((max(a, c), min(b, d)) for (a, b), (c, d) in pairs))

    def within(self, outer: Region) -> tuple[slice, ...]:
        """Return the slices that pick this box out of a tensor that holds ``outer``."""
        pairs = zip(self.bounds, outer.bounds, strict=True)
        return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in pairs)

    def index(self) -> Tensor:
        """Compute flat positions in the whole tensor: int64, shaped like the box."""
        if self.span is not None:
            return torch.arange(*self.span).view(self.sizes)
        index = torch.zeros((), dtype=torch.int64)
        for start_stop, size in zip(self.bounds, self.shape, strict=True):
            index = index.unsqueeze(-1) * size + torch.arange(*start_stop)
        return index

    def position(self, nth: int) -> int:
        """Compute the flat position in the whole tensor of the box's ``nth`` element, from 0."""
        if self.span is not None:
            return self.start + nth
        at, stride = 0, 1
        for (start, stop), size in zip(reversed(self.bounds), reversed(self.shape), strict=True):
            nth, here = divmod(nth, stop - start)
            at, stride = at + (start + here) * stride, stride * size
        return at

    def before(self, position: int) -> int:
        """Count the elements of the box that lie before a flat position in the whole tensor."""
        if self.span is not None or not self.numel:
            return min(max(position - self.start, 0), self.numel)
        count, inner, stride = 0, self.numel, math.prod(self.shape)
        for (start, stop), size in zip(self.bounds, self.shape, strict=True):
            inner, stride = inner // (stop - start), stride // size
            at, position = divmod(position, stride)
            count += min(max(at - start, 0), stop - start) * inner
            if not start <= at < stop:
                break
        return count

    def matrices(self) -> Iterator[Region]:
        """Iterate over the matrices that this box touches: all of the last two dimensions."""
        whole = tuple((0, size) for size in self.shape[-2:])
        for at in itertools.product(*(range(*bounds) for bounds in self.bounds[:-2])):
            yield Region(self.shape, (*((i, i + 1) for i in at), *whole))

    def blocks(self, numel: int, *, whole_rows: bool = False) -> Iterator[Region]:
        """Cut into boxes of at most ``numel`` elements, in order, outermost dimensions first.

        ``whole_rows``: never cut the last dimension, however many elements that takes.
        """
        outer = self.sizes[:-1] if whole_rows else self.sizes
        dim = next((i for i, size in enumerate(outer) if size > 1), None)
        if self.numel <= numel or dim is None:
            yield self
            return
        start, stop = self.bounds[dim]
        step = max(1, (stop - start) * numel // self.numel)
        for at in range(start, stop, step):
            part = (at, min(at + step, stop))
            bounds = (*self.bounds[:dim], part, *self.bounds[dim + 1 :])
            yield from Region(self.shape, bounds).blocks(numel, whole_rows=whole_rows)


Index = EllipsisType | slice | tuple[slice, ...]


def as_region(index: Index, shape: Sequence[int]) -> Region:
    """Convert an index (``...``, a slice, a tuple of slices) to the box it picks; steps are 1."""
    parts = index if isinstance(index, tuple) else (index,)
    given = [part for part in parts if part is not Ellipsis]
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    filled = [*parts[:at], *[slice(None)] * (len(shape) - len(given)), *parts[at + 1 :]]
    bounds = []
    for part, size in zip(filled, shape, strict=True):
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError(f"a merged tensor is indexed with plain slices, got {index!r}")
        start, stop, _ = part.indices(size)
        bounds.append((start, max(start, stop)))
    return Region(tuple(shape), tuple(bounds))
