"""Methods that merge the singular vectors and values of task vectors: TSV-Merge, Iso-C, Iso-CTS.

As in the papers, linear layers are merged as matrices, in float64, and all other weights are
averaged. Singular values below 1e-6 of a task vector's largest are rounding noise and are dropped:
otherwise, for task vectors of low rank such as a LoRA adapter's, the papers' formulas would mix in
vectors that no expert has.

No task vector is kept in memory. With D = U S Vᵀ [rows, n], the smaller side second, the
eigenvectors of DᵀD [n, n] are V, its eigenvalues S², and U = D V S⁻¹ is computed row by row. U is
orthonormal up to 2e-16 (largest / smallest value)², in the worst case, that of a value just above
the noise, 2e-4.
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
"""Share of the largest singular value below which others are noise of float32 task vectors."""


class Spectrum(NamedTuple):
    """Right singular vectors and values: ``v`` [n, k], ``s`` [k], largest first, without noise."""

    v: Tensor
    s: Tensor

    def left(self, rows: Tensor) -> Tensor:
        """Compute rows of the left singular vectors [rows, k] from rows of the matrix [rows, n]."""
        return (rows @ self.v).div_(self.s)


def spectrum(gram: Tensor, most: int | None = None, norm: Tensor | None = None) -> Spectrum:
    """Compute the leading singular values and right vectors of a matrix from its Gram matrix.

    ``gram``: [n, n]. ``most``: limit of their number. ``norm``: noise is measured relative to this
    norm of the matrix before a projection, by default relative to the largest value.
    """
    squares, v = torch.linalg.eigh(gram)  # smallest first
    s = squares.clamp_(min=0).sqrt_().flip(0)[:most]
    s = s[s > NOISE * (s[:1] if norm is None else norm)]
    return Spectrum(v[:, len(v) - len(s) :].flip(1), s)


def gram_of(n: int, pieces: Iterable[Tensor]) -> Tensor:
    """Accumulate the Gram matrix [n, n] of a float64 matrix from pieces [rows, n]."""
    gram = torch.zeros(n, n, dtype=torch.float64)
    for piece in pieces:
        gram.addmm_(piece.mT, piece)
    return gram


def whitening(gram: Tensor) -> Tensor:
    """Compute the inverse square root [n, n] of a Gram matrix.

    A matrix A = P D Qᵀ times that of its own Gram matrix is P Qᵀ, the nearest matrix to A with
    orthonormal columns (the Procrustes solution). For linearly dependent columns it is a partial
    isometry onto their span.
    """
    v, s = spectrum(gram)
    return (v / s) @ v.mT


def scaled_right(spectra: Sequence[Spectrum], *, flat: bool) -> Tensor:
    """Concatenate right singular vectors, make them orthonormal and scale them: S V⊥ᵀ [k, n].

    ``flat``: replace every singular value by the mean of all.
    """
    v, s = (torch.cat(each, dim=-1) for each in zip(*spectra, strict=True))
    s = s.mean().expand(len(s)) if flat else s
    return (v @ whitening(v.mT @ v)).mul_(s).mT


def recombined(left: Rows, right: Tensor, matrix: Matrix) -> Rows:
    """Build the function that computes rows of U⊥ S V⊥ᵀ from the same rows of the task vectors.

    ``right``: S V⊥ᵀ [k, n]. ``left`` computes rows of U [rows, k], concatenated singular vectors.
    """
    overlap = gram_of(len(right), (left(piece.deltas) for piece in matrix.pieces()))
    right = whitening(overlap) @ right
    return lambda deltas: left(deltas) @ right


def work(
    products: Callable[[int], float], decompositions: Callable[[int], int]
) -> Callable[..., float]:
    """Build the cost function of products [m, n] by [n, n] and of spectra [n, n], n <= m.

    A product takes 2 m n² operations, the eigenvectors of a symmetric matrix 9 n³ [Golub & Van
    Loan, 4th ed., sec. 8.3.1]. The arguments compute the number of each from that of experts.
    """

    def cost(outputs: int, inputs: int, n_experts: int) -> float:
        n, m = sorted((outputs, inputs))
        return products(n_experts) * 2.0 * m * n**2 + decompositions(n_experts) * 9.0 * n**3

    return cost


@dataclass(frozen=True)
class TaskSingularVectors:
    """Keep each expert's leading 1/N of the singular vectors, decorrelate, add up [Gargiulo 2024].

    TSV-Merge, algorithm 1: with the first r/N components of each task vector concatenated to
    U S Vᵀ, the merged task vector is U⊥ S V⊥ᵀ, where U⊥ and V⊥ are the orthonormal matrices
    nearest to U and V (orthogonal Procrustes). At least one component of each expert is kept.
    """

    lambda_: float = lambda_field()
    granularity = MATRIX

    def prepare(self, sources: Sources) -> None:
        """Log the cost of the merge."""
        announce(sources, "tsv", "decompositions", work(lambda n: n + 4, lambda n: n + 2))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]; see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, upright=True)

    def merge(self, matrix: Matrix) -> Rows:
        """Build the function that computes merged rows from the same rows of the task vectors."""
        n = matrix.shape[1]
        kept = max(1, n // matrix.n_experts)
        spectra = [
            spectrum(gram_of(n, (piece.deltas[i] for piece in matrix.pieces())), kept)
            for i in range(matrix.n_experts)
        ]

        def left(deltas: Sequence[Tensor]) -> Tensor:
            pairs = zip(spectra, deltas, strict=True)
            return torch.cat([each.left(delta) for each, delta in pairs], dim=1)

        return recombined(left, scaled_right(spectra, flat=False), matrix)


@dataclass(frozen=True)
class IsoC:
    """Sum of task vectors with all singular values alike [Marczak et al. 2025].

    Iso-C: from the sum of the task vectors, U S Vᵀ, the merged task vector is mean(S) U Vᵀ.
    """

    lambda_: float = lambda_field()
    granularity = MATRIX

    def prepare(self, sources: Sources) -> None:
        """Log the cost of the merge."""
        announce(sources, "iso_c", "decompositions", work(lambda n: 2, lambda n: 1))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]; see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, upright=True)

    def merge(self, matrix: Matrix) -> Rows:
        """Build the function that computes merged rows from the same rows of the task vectors."""
        v, s = spectrum(gram_of(matrix.shape[1], (total(p.deltas) for p in matrix.pieces())))
        evened = (v * (s.mean() / s)) @ v.mT
        return lambda deltas: total(deltas) @ evened


@dataclass(frozen=True)
class IsoCTS:
    """Iso-C, with the weakest common directions replaced by each task's own [Marczak et al. 2025].

    Iso-CTS: the leading k singular vectors of the sum of task vectors, and the leading (r - k)/N of
    each task vector projected off the span of those k left ones, are made orthonormal together
    (as in TSV-Merge), with the mean of all their singular values. k is about
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
        """Log the cost of the merge."""
        announce(sources, "iso_cts", "decompositions", work(lambda n: 5 * n + 5, lambda n: n + 3))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]; see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, upright=True)

    def merge(self, matrix: Matrix) -> Rows:
        """Build the function that computes merged rows from the same rows of the task vectors."""
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
            each = zip(owns, deltas, spanned, strict=False)  # owns is empty if n_own is 0
            return torch.cat([shared, *(own.left(d) - shared @ x for own, d, x in each)], dim=1)

        return recombined(left, scaled_right([common, *owns], flat=True), matrix)

    def own_directions(self, rank: int, n_experts: int) -> int:
        """Compute the number of directions each expert adds to a matrix of full rank ``rank``."""
        left = rank - int(rank * self.common_space_fraction)
        return min(round(left / n_experts), rank // n_experts)


def outside(common: Spectrum, matrix: Matrix, expert: int, most: int) -> tuple[Spectrum, Tensor]:
    """Compute the spectrum, up to ``most`` values, of a task vector off the common left vectors.

    ``common``: the spectrum of the sum of the task vectors. Also returns the task vector's
    coefficients on its k left vectors, [k, n]; for a turned matrix these are not needed and 0.
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
    """Register the methods of this family."""
    for name, method, paper in (
        ("tsv", TaskSingularVectors, "Gargiulo et al. 2024, arXiv:2412.00081"),
        ("iso_c", IsoC, "Marczak et al. 2025, arXiv:2502.04959"),
        ("iso_cts", IsoCTS, "Marczak et al. 2025, arXiv:2502.04959"),
    ):
        register(name, method, needs_base=True, paper=paper)
