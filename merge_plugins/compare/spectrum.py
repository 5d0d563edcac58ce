"""Measure how much of a matrix its first singular directions hold, read a few rows at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from merge_plugins.api import Region, Weight
from merge_plugins.ops.matrices import PIECE, Matrix

EXACT = 256
"""Matrices whose shorter side is at most this are decomposed exactly, by their Gram matrix."""
PASSES = 3
"""Walks over a larger matrix: each multiplies a subspace by its Gram matrix [Halko, Martinsson &
Tropp 2011, alg. 4.4]. Where singular values fall as 1 / sqrt(k) or faster, three find 99 % of what
the first directions hold; of pure noise, whose spectrum is the flattest there is, five sixths."""
Pairs = Sequence[tuple[int, int]]


def cost(shape: Sequence[int], directions: int) -> float:
    """Count the floating-point operations of `captured`, for each change, about."""
    if not _is_decomposed(shape, directions):
        return 0.0
    shorter = min(shape[-2:])
    multiplied = shorter if shorter <= EXACT else 4 * directions * PASSES
    return 2.0 * math.prod(shape) * multiplied


def _is_decomposed(shape: Sequence[int], directions: int) -> bool:
    return directions > 0 and len(shape) > 1 and min(shape[-2:]) > directions


def captured(weight: Weight, changes: Pairs, directions: int) -> Tensor | None:
    """Sum the squares of the first singular values of differences between models: float64 [C].

    ``changes``: pairs of models, 0 for the base. None for what is no matrix, or one with no more
    directions than that. Of a stack of matrices, the sum over all.
    """
    if not _is_decomposed(weight.shape, directions):
        return None
    measure = _exactly if min(weight.shape[-2:]) <= EXACT else _nearly
    one = functools.partial(measure, weight, changes, directions)
    found = [weight.place.alone(functools.partial(one, m)) for m in weight.region.matrices()]
    return torch.stack(found).sum(0)


def _exactly(weight: Weight, changes: Pairs, directions: int, region: Region) -> Tensor:
    """Decompose a matrix by its Gram matrix on the shorter side, in float64."""
    matrix = Matrix(weight, region).upright()
    n = matrix.shape[1]
    grams = torch.zeros(len(changes), n, n, dtype=torch.float64, device=weight.device)
    for piece in matrix.pieces():
        for gram, change in zip(
            grams, _differences(piece.deltas.__getitem__, changes), strict=True
        ):
            gram.addmm_(change.mT, change)
    return _largest(grams, directions)


def _nearly(weight: Weight, changes: Pairs, directions: int, region: Region) -> Tensor:
    """Iterate a subspace of the rows, twice as wide as what is asked for, in float32."""
    n = region.sizes[-1]
    generator = torch.Generator().manual_seed(n)
    start = torch.randn(n, min(n, 2 * directions), generator=generator).to(weight.device)
    spaces = torch.linalg.qr(start).Q.expand(len(changes), -1, -1)
    for _ in range(PASSES - 1):
        spaces = torch.linalg.qr(_multiplied(weight, changes, spaces, region)).Q
    return _largest(spaces.mT @ _multiplied(weight, changes, spaces, region), directions)


def _multiplied(weight: Weight, changes: Pairs, spaces: Tensor, region: Region) -> Tensor:
    """Multiply a subspace by the Gram matrix of each change, in one walk: float32 [C, n, w]."""
    products = torch.zeros_like(spaces, memory_format=torch.contiguous_format)
    for slot in weight.walk(region.blocks(PIECE, whole_rows=True)):
        deltas = slot.deltas().flatten(1, -2)  # [N, rows, n]
        differences = _differences(deltas.__getitem__, changes)
        for product, change, space in zip(products, differences, spaces, strict=True):
            product.addmm_(change.mT, change @ space)
    return products


def _differences(delta: Callable[[int], Tensor], changes: Pairs) -> list[Tensor]:
    """Compute some rows of each change from those of the task vectors."""
    return [
        delta(second - 1) if first == 0 else delta(second - 1) - delta(first - 1)
        for first, second in changes
    ]


def _largest(symmetric: Tensor, count: int) -> Tensor:
    """Sum the largest eigenvalues of each matrix: float64 [C], on the CPU."""
    values: Tensor = torch.linalg.eigvalsh((symmetric + symmetric.mT).double() / 2)
    return values[:, -count:].clamp(min=0).sum(-1).cpu()
