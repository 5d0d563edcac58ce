"""Merge linear layers as matrices, one at a time and read in pieces; average other weights.

Matrix methods work in two passes over pieces of rows: the first accumulates an [n, n] Gram matrix
(n: input size or the shorter side), the second computes each merged row from that and the experts'
same rows. Memory beside the model: O(n^2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from merge_plugins.api import Region, Slot, Sources, Weight, holds_matrices
from merge_plugins.memory import return_memory
from merge_plugins.notice import tell
from merge_plugins.ops.arithmetic import weighted_sum

PIECE = 1 << 18
"""Elements read at once, 2 MiB in float64: enough for products with an [n, n] at full speed, little
beside it, and little of what malloc keeps after each."""


Rows: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""From N experts' task vectors of some rows to the merged one's: float64 [rows, columns]."""


class Deltas(Sequence[Tensor]):
    """Task vectors of some rows, each computed when it is indexed: float64 [rows, columns]."""

    def __init__(self, base: Tensor, experts: Sequence[Tensor]) -> None:
        self._base, self._experts = base, experts

    def __len__(self) -> int:
        return len(self._experts)

    def __getitem__(self, expert: int) -> Tensor:  # type: ignore[override]
        """Compute expert minus base, a new tensor."""
        return self._experts[expert].to(torch.float64, copy=True).sub_(self._base)


class Piece(NamedTuple):
    """Some rows of a matrix."""

    region: Region
    """Where they are stored."""
    base: Tensor
    """The base model's: [rows, columns], as stored."""
    deltas: Deltas
    """N task vectors."""


@dataclass(frozen=True)
class Matrix:
    """Base and task vectors of one linear layer. Rows are its outputs, columns its inputs."""

    weight: Weight
    region: Region
    turned: bool = False
    """Rows are its inputs, columns its outputs."""

    @property
    def n_experts(self) -> int:
        """Number of task vectors."""
        return self.weight.n_experts

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        rows, columns = self.region.sizes[-2:]
        return (rows, columns) if self._row_dim == -2 else (columns, rows)

    def flipped(self) -> Matrix:
        """Return this matrix with its rows as columns."""
        return replace(self, turned=not self.turned)

    def upright(self) -> Matrix:
        """Return this matrix with at least as many rows as columns, flipped if need be."""
        rows, columns = self.shape
        return self if rows >= columns else self.flipped()

    def pieces(self) -> Iterator[Piece]:
        """Read the matrix some rows at a time; rows read before are dropped."""
        for part in self.weight.walk(self._regions()):
            base = self.oriented(part.base)
            yield Piece(part.box, base, Deltas(base, [*map(self.oriented, part.experts)]))
        return_memory()  # of the pieces, before an [n, n] is made among their holes

    def oriented(self, stored: Tensor) -> Tensor:
        """View part of the stored weight as rows and columns."""
        matrix = stored[(0,) * (stored.ndim - 2)]
        return matrix if self._row_dim == -2 else matrix.mT

    @property
    def _row_dim(self) -> int:
        """The dimension that runs over the rows."""
        return -2 if (self.weight.input_dim == -1) != self.turned else -1

    def _regions(self) -> Iterator[Region]:
        rows, columns = self.shape
        step = max(1, PIECE // columns)
        for start in range(0, rows, step):
            bounds = list(self.region.bounds)
            bounds[self._row_dim] = (start, min(start + step, rows))
            yield Region(self.region.shape, tuple(bounds))


def by_matrix(
    weight: Weight,
    scale: float,
    merge: Callable[[Matrix], Rows],
    turn: Callable[[Matrix], Matrix] | None = None,
) -> Tensor:
    """Add scale * merged task vector to the base: [*shape] in the weight's ``rounds_to``.

    ``merge`` measures one matrix and returns the function that merges its rows; ``turn`` chooses
    which way round, as `Matrix.upright` does (default: rows are outputs).
    """
    result = weight.empty(weight.rounds_to)
    for region in weight.region.matrices():
        matrix = Matrix(weight, region)
        matrix = matrix if turn is None else turn(matrix)
        rows = merge(matrix)
        for piece in matrix.pieces():
            target = matrix.oriented(result[piece.region.within(weight.region)])
            target.copy_(rows(piece.deltas).mul_(scale).add_(piece.base))
    return result


def total(deltas: Sequence[Tensor]) -> Tensor:
    """Sum task vectors: float64 [rows, columns]."""
    return functools.reduce(Tensor.add_, deltas)


def averaged(slot: Slot, scale: float) -> Tensor:
    """Add scale * mean task vector to the base: float32 [*shape], without holding a task vector.

    For weights that are no matrices of linear layers.
    """
    share = scale / len(slot.experts)
    return weighted_sum((slot.base, *slot.experts), (1 - scale, *[share] * len(slot.experts)))


def announce(
    sources: Sources, method: str, what: str, cost: Callable[[int, int, int], float]
) -> None:
    """Tell the number of matrices to be merged, and the work that it takes.

    ``cost(outputs, inputs, experts)``: floating-point operations of one matrix.
    """
    n_matrices, n_averaged, total = 0, 0, 0.0
    for weight in sources.slots():
        if not holds_matrices(weight):
            n_averaged += 1
            continue
        regions = list(weight.region.matrices())
        outputs, inputs = Matrix(weight, regions[0]).shape
        n_matrices += len(regions)
        total += len(regions) * cost(outputs, inputs, weight.n_experts)
    tell(
        f"{method}: {what} of {n_matrices} matrices, one at a time; about {total / 1e12:.3g} "
        f"TFLOP; the other {n_averaged} weights are averaged."
    )
