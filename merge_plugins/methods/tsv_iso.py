"""Methods that merge the singular vectors and values of task vectors: TSV-Merge, Iso-C, Iso-CTS.

Published for vision transformers, whose linear layers they take as matrices while averaging every
other weight; so do these, in float64. Singular values below 1e-6 of a task vector's largest are
rounding noise and count as none: of a task vector of lower rank, such as a LoRA adapter's, the
papers' formulas would mix in vectors that no expert has.

No task vector is held. With D = U S Vᵀ [rows, n], the smaller side second, V and S are what
DᵀD [n, n] has as eigenvectors and, squared, as eigenvalues, and rows of U are those of D V S⁻¹.
Orthonormal up to 2e-16 (largest / smallest value)², so to 2e-4 in the worst case, where a value is
hardly more than noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from merge_plugins.api import MATRIX, Slot, Sources, Weight, parameter
from merge_plugins.methods._fields import check_share, lambda_field
from merge_plugins.ops.matrices import Matrix, Piece, Rows, announce, averaged, by_matrix, total
from merge_plugins.plugins import hookimpl

NOISE = 1e-6
"""Singular values below this share of the largest are none: task vectors are known to float32."""


class Spectrum(NamedTuple):
    """Right singular vectors and values: ``v`` [n, k], ``s`` [k], largest first, without noise."""

    v: Tensor
    s: Tensor

    def left(self, rows: Tensor) -> Tensor:
        """Return the left singular vectors at rows [rows, n] of the matrix: [rows, k]."""
        return (rows @ self.v).div_(self.s)


def spectrum(gram: Tensor, most: int | None = None, norm: Tensor | None = None) -> Spectrum:
    """Return what is largest in the spectrum of a matrix with that Gram matrix: [n, n].

    ``most``: how many singular values. ``norm``: of what the matrix is left of; noise is a share
    of that, else of the largest value.
    """
    squares, v = torch.linalg.eigh(gram)  # smallest first
    s = squares.clamp_(min=0).sqrt_().flip(0)[:most]
    s = s[s > NOISE * (s[:1] if norm is None else norm)]
    return Spectrum(v[:, len(v) - len(s) :].flip(1), s)


def gram_of(n: int, pieces: Iterable[Tensor]) -> Tensor:
    """Return the Gram matrix [n, n] of a float64 matrix, from pieces [rows, n] of it."""
    gram = torch.zeros(n, n, dtype=torch.float64)
    for piece in pieces:
        gram.addmm_(piece.mT, piece)
    return gram


def whitening(gram: Tensor) -> Tensor:
    """Return what makes columns with that Gram matrix orthonormal: its inverse root [n, n].

    A times it is the nearest matrix to A with orthonormal columns, the Procrustes solution: P Qᵀ
    of A = P D Qᵀ. Where columns depend on each other that is a partial isometry: what they span,
    and nothing else.
    """
    v, s = spectrum(gram)
    return (v / s) @ v.mT


def scaled_right(found: Sequence[Spectrum], *, flat: bool) -> Tensor:
    """Return S V⊥ᵀ [k, n] of right singular vectors put side by side and made orthonormal.

    ``flat``: every singular value is replaced by the mean of all.
    """
    v, s = (torch.cat(each, dim=-1) for each in zip(*found, strict=True))
    s = s.mean().expand(len(s)) if flat else s
    return (v @ whitening(v.mT @ v)).mul_(s).mT


def recombined(left: Rows, right: Tensor, matrix: Matrix) -> Rows:
    """Return how rows of U⊥ S V⊥ᵀ come about, where ``right`` is S V⊥ᵀ [k, n].

    ``left`` gives rows of U [rows, k]: singular vectors put side by side.
    """
    overlap = gram_of(len(right), (left(piece.deltas) for piece in matrix.pieces()))
    right = whitening(overlap) @ right
    return lambda deltas: left(deltas) @ right


def work(
    products: Callable[[int], float], decompositions: Callable[[int], int]
) -> Callable[..., float]:
    """Return the cost of so many products [m, n] by [n, n] and so many spectra [n, n], n <= m.

    2 m n² operations for a product and 9 n³ for the eigenvectors of a symmetric matrix [Golub &
    Van Loan, 4th ed., sec. 8.3.1]; how many of each follows from the number of experts.
    """

    def cost(outputs: int, inputs: int, n_experts: int) -> float:
        n, m = sorted((outputs, inputs))
        return products(n_experts) * 2.0 * m * n**2 + decompositions(n_experts) * 9.0 * n**3

    return cost


@dataclass(frozen=True)
class TaskSingularVectors:
    """Keep each expert's leading 1/N of the singular vectors, decorrelate, add up [Gargiulo 2024].

    TSV-Merge, algorithm 1: with the first r/N components of each task vector side by side as
    U S Vᵀ, the merged task vector is U⊥ S V⊥ᵀ, where U⊥ and V⊥ are the orthonormal matrices
    nearest to U and V (orthogonal Procrustes). One component at least is kept of each expert.
    """

    lambda_: float = lambda_field()
    granularity = MATRIX

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""
        announce(sources, "tsv", "decompositions", work(lambda n: n + 4, lambda n: n + 2))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, upright=True)

    def merge(self, matrix: Matrix) -> Rows:
        """Return how rows of a matrix are merged."""
        n = matrix.shape[1]
        kept = max(1, n // matrix.n_experts)
        found = [
            spectrum(gram_of(n, (piece.deltas[i] for piece in matrix.pieces())), kept)
            for i in range(matrix.n_experts)
        ]

        def left(deltas: Sequence[Tensor]) -> Tensor:
            pairs = zip(found, deltas, strict=True)
            return torch.cat([each.left(delta) for each, delta in pairs], dim=1)

        return recombined(left, scaled_right(found, flat=False), matrix)


@dataclass(frozen=True)
class IsoC:
    """Sum of task vectors with all singular values alike [Marczak et al. 2025].

    Iso-C: of the sum of the task vectors, U S Vᵀ, the merged one is mean(S) U Vᵀ.
    """

    lambda_: float = lambda_field()
    granularity = MATRIX

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""
        announce(sources, "iso_c", "decompositions", work(lambda n: 2, lambda n: 1))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, upright=True)

    def merge(self, matrix: Matrix) -> Rows:
        """Return how rows of a matrix are merged."""
        v, s = spectrum(gram_of(matrix.shape[1], (total(p.deltas) for p in matrix.pieces())))
        evened = (v * (s.mean() / s)) @ v.mT
        return lambda deltas: total(deltas) @ evened


@dataclass(frozen=True)
class IsoCTS:
    """Iso-C, with the weakest common directions replaced by each task's own [Marczak et al. 2025].

    Iso-CTS: the leading k singular vectors of the sum of the task vectors, and (r - k)/N of what
    each task vector has outside the span of those k left ones, are made orthonormal together
    (as in TSV-Merge) and all get the mean of their singular values. k is about
    ``common_space_fraction`` r, such that r - k is a multiple of N.
    """

    lambda_: float = lambda_field()
    common_space_fraction: float = parameter(
        0.8, doc="share of the directions taken from the sum of the task vectors, in [0, 1]"
    )
    granularity = MATRIX

    def __post_init__(self) -> None:
        check_share("common_space_fraction", (self.common_space_fraction,))

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""
        announce(sources, "iso_cts", "decompositions", work(lambda n: 5 * n + 5, lambda n: n + 3))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, upright=True)

    def merge(self, matrix: Matrix) -> Rows:
        """Return how rows of a matrix are merged."""
        n = matrix.shape[1]
        n_own = self.own_directions(n, matrix.n_experts)
        gram = gram_of(n, (total(piece.deltas) for piece in matrix.pieces()))
        common = spectrum(gram, n - n_own * matrix.n_experts)
        del gram
        owns, spanned = [], []
        for i in range(matrix.n_experts if n_own else 0):
            own, along = outside(common, matrix, i, n_own)
            owns.append(own)
            spanned.append(own.left(along))

        def left(deltas: Sequence[Tensor]) -> Tensor:
            shared = common.left(total(deltas))
            each = zip(owns, deltas, spanned, strict=False)  # no own directions: only the shared
            return torch.cat([shared, *(own.left(d) - shared @ x for own, d, x in each)], dim=1)

        return recombined(left, scaled_right([common, *owns], flat=True), matrix)

    def own_directions(self, rank: int, n_experts: int) -> int:
        """How many directions each expert adds to a matrix of full rank ``rank``."""
        left = rank - int(rank * self.common_space_fraction)
        return min(round(left / n_experts), rank // n_experts)


def outside(common: Spectrum, matrix: Matrix, expert: int, most: int) -> tuple[Spectrum, Tensor]:
    """Return the spectrum, up to ``most``, of a task vector outside the common left vectors' span.

    And what it has along those k vectors, [k, n], where they are over the rows; else 0. ``common``
    is of the sum of the task vectors.
    """
    along = torch.zeros(common.v.mT.shape, dtype=torch.float64)
    square = torch.zeros((), dtype=torch.float64)
    for piece in matrix.pieces():
        delta = piece.deltas[expert]
        square += delta.square().sum()
        if not matrix.turned:
            along.addmm_(common.left(total(piece.deltas)).mT, delta)

    def rest(piece: Piece) -> Tensor:
        delta = piece.deltas[expert]
        if matrix.turned:  # left vectors are over the columns
            return delta - (delta @ common.v) @ common.v.mT
        return delta - common.left(total(piece.deltas)) @ along

    gram = gram_of(matrix.shape[1], map(rest, matrix.pieces()))
    return spectrum(gram, most, square.sqrt()), along


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the family."""
    for name, method, paper in (
        ("tsv", TaskSingularVectors, "Gargiulo et al. 2024, arXiv:2412.00081"),
        ("iso_c", IsoC, "Marczak et al. 2025, arXiv:2502.04959"),
        ("iso_cts", IsoCTS, "Marczak et al. 2025, arXiv:2502.04959"),
    ):
        register(name, method, needs_base=True, paper=paper)
