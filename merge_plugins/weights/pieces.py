"""Describe a weight as boxes of other weights, in another order of dimensions, and read it so.

Checkpoints of one model store the same elements differently: renamed, stacked, concatenated, split,
transposed. A `Piece` says where one box of a weight lies in another; pieces compose and invert, so
that a weight of one layout is read straight from the files of another, region by region.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.weights.computed import ComputedTensor, SourceTensor

Box: TypeAlias = tuple[tuple[int, int], ...]
"""One half-open range per dimension."""


@dataclass(frozen=True)
class Piece:
    """One box of a weight, which is a box of the weight ``source``."""

    box: Box
    source: str
    origin: Box
    """The box in the source."""
    dims: tuple[int | None, ...]
    """The dimension of the source that each dimension of the weight is; None for one of size 1 that
    the source lacks. Dimensions of the source that are not named here have size 1 in ``origin``."""

    @classmethod
    def whole(cls, name: str, shape: Sequence[int]) -> Piece:
        """Describe a weight as itself."""
        box = tuple((0, size) for size in shape)
        return cls(box, name, box, tuple(range(len(box))))

    @property
    def numel(self) -> int:
        """Count the elements."""
        return math.prod(stop - start for start, stop in self.box)

    def cut(self, dim: int, start: int, stop: int) -> Piece | None:
        """Keep ``[start, stop)`` of a dimension of the weight, counted anew; None if empty."""
        (first, last), at = self.box[dim], self.dims[dim]
        low, high = max(first, start), min(last, stop)
        if low >= high:
            return None
        origin = self.origin
        if at is not None:
            begin = origin[at][0] + low - first
            origin = _with(origin, at, (begin, begin + high - low))
        return replace(self, box=_with(self.box, dim, (low - start, high - start)), origin=origin)

    def moved(self, dim: int, by: int) -> Piece:
        """Shift the box along a dimension of the weight."""
        start, stop = self.box[dim]
        return replace(self, box=_with(self.box, dim, (start + by, stop + by)))

    def permuted(self, order: Sequence[int | None]) -> Piece:
        """Reorder the weight's dimensions; None inserts one of size 1, as those left out are."""
        box = tuple((0, 1) if dim is None else self.box[dim] for dim in order)
        dims = tuple(None if dim is None else self.dims[dim] for dim in order)
        return replace(self, box=box, dims=dims)

    def through(self, other: Piece) -> Piece | None:
        """Describe this piece's source by another piece of the same weight; None if none is shared.

        Both describe one weight: this says where its elements lie in ``source``, the other where
        they lie in ``other.source``. The result is a piece of the former, which lies in the latter.
        """
        pairs = zip(self.box, other.box, strict=True)
        shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in pairs)
        if any(start >= stop for start, stop in shared):
            return None
        dims: list[int | None] = [None] * len(self.origin)
        for mine, theirs in zip(self.dims, other.dims, strict=True):
            if mine is not None:
                dims[mine] = theirs
        return Piece(self._in_origin(shared), other.source, other._in_origin(shared), tuple(dims))

    def _in_origin(self, box: Box) -> Box:
        """Translate a box of the weight, which lies within this piece, to the source."""
        found = list(self.origin)
        for (start, stop), (first, _), dim in zip(box, self.box, self.dims, strict=True):
            if dim is not None:
                begin = self.origin[dim][0] + start - first
                found[dim] = (begin, begin + stop - start)
        return tuple(found)

    def read(self, source: SourceTensor, box: Box) -> Tensor:
        """Read a box of the weight, which lies within this piece, from its source."""
        found = source.read(Region(tuple(source.shape), self._in_origin(box)))
        kept = [dim for dim in self.dims if dim is not None]
        dropped = [dim for dim in range(found.ndim) if dim not in kept]
        return found.permute(*kept, *dropped).reshape([stop - start for start, stop in box])

    def within(self, weight: Tensor) -> Tensor:
        """View this piece of the weight as its box of the source: dimensions in that order."""
        box = weight[tuple(slice(*bounds) for bounds in self.box)]
        kept = [self.dims.index(dim) for dim in range(len(self.origin)) if dim in self.dims]
        added = [dim for dim in range(box.ndim) if dim not in kept]
        return box.permute(*kept, *added).view([stop - start for start, stop in self.origin])


Pieces: TypeAlias = tuple[Piece, ...]


def _with(box: Box, dim: int, bounds: tuple[int, int]) -> Box:
    return (*box[:dim], bounds, *box[dim + 1 :])


def inverted(weights: Mapping[str, Pieces], others: Mapping[str, Pieces]) -> dict[str, Pieces]:
    """Describe the sources of some weights by the sources of the same weights elsewhere.

    ``weights`` and ``others``: the same weights by name, as pieces of two sets of sources.
    """
    found: dict[str, dict[Piece, None]] = {}
    for name in weights.keys() & others.keys():
        mine, theirs = weights[name], others[name]
        alike = [piece.box for piece in mine] == [piece.box for piece in theirs]  # often, and many
        pairs = zip(mine, theirs, strict=True) if alike else itertools.product(mine, theirs)
        for piece, other in pairs:
            shared = piece.through(other)
            if shared is not None:
                found.setdefault(piece.source, {})[shared] = None
    return {name: tuple(sorted(each, key=lambda piece: piece.box)) for name, each in found.items()}


def covers(pieces: Pieces, shape: Sequence[int]) -> bool:
    """Whether the pieces hold every element of a weight of that shape exactly once."""
    if sum(piece.numel for piece in pieces) != math.prod(shape):
        return False
    if any(stop > size for p in pieces for (_, stop), size in zip(p.box, shape, strict=True)):
        return False
    reached: list[Box] = []  # boxes that end, in the first dimension, behind where the next starts
    for box in sorted(piece.box for piece in pieces) if shape else ():
        reached = [other for other in reached if other[0][1] > box[0][0]]
        if any(_overlap(box, other) for other in reached):
            return False
        reached.append(box)
    return True


def _overlap(box: Box, other: Box) -> bool:
    return all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(box, other, strict=True))


def arranged(
    name: str, shape: Sequence[int], pieces: Pieces, sources: Mapping[str, SourceTensor]
) -> SourceTensor | None:
    """Build a weight of its pieces, read lazily; None if they do not cover it exactly once."""
    shape = tuple(shape)
    if not covers(pieces, shape):
        return None
    first = sources[pieces[0].source]
    if pieces == (Piece.whole(pieces[0].source, first.shape),):
        return first
    inputs = tuple(sources[source] for source in dict.fromkeys(p.source for p in pieces))
    dtype, read_as = (
        reduce(torch.promote_types, dtypes)
        for dtypes in ([each.dtype for each in inputs], [each.read_as for each in inputs])
    )
    made = _Arranged(name, first.file, dtype, shape, inputs, read_as=read_as, how=pieces)
    made.compute, made.pieces = made.of_pieces, [(piece, sources[piece.source]) for piece in pieces]
    return made


@dataclass(eq=False)
class _Arranged(ComputedTensor):
    """A weight that lies in pieces of others."""

    pieces: list[tuple[Piece, SourceTensor]] = field(default_factory=list)

    def of_pieces(self, region: Region) -> Tensor:
        """Read a region; without a copy if it lies in one piece."""
        result: Tensor | None = None
        for piece, source in self.pieces:
            shared = region.shared(Region(self.shape, piece.box))
            if any(start >= stop for start, stop in shared.bounds):
                continue
            found = piece.read(source, shared.bounds)
            if shared.bounds == region.bounds:
                return found.to(self.read_as)
            if result is None:
                result = torch.empty(region.sizes, dtype=self.read_as)
            result[shared.within(region)] = found
        return torch.empty(region.sizes, dtype=self.read_as) if result is None else result

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Release pages of the sources: of the range if it lies in one, else of the weight."""
        stop = math.prod(self.shape) if stop is None else stop
        if len(self.pieces) == 1:
            ((piece, source),) = self.pieces
            span = Region(tuple(source.shape), piece.origin).span
            ordered = [dim for dim in piece.dims if dim is not None]
            if span is not None and ordered == sorted(ordered):
                source.release(span[0] + start, span[0] + stop)
                return
        if stop == math.prod(self.shape):  # the end of a walk over all of it
            for piece, source in self.pieces:
                source.release(*(Region(tuple(source.shape), piece.origin).span or ()))
