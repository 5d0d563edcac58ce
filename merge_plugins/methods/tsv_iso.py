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

    @property
    def to_left(self) -> Tensor:
        """Compute V S⁻¹ [n, k]: rows of the matrix, times it, are rows of the left vectors."""
        return self.v / self.s


def spectrum(gram: Tensor, most: int | None = None, norm: Tensor | None = None) -> Spectrum:
    """Compute the leading singular values and right vectors of a matrix from its Gram matrix.

    ``gram``: [n, n]. ``most``: limit of their number. ``norm``: noise is measured relative to this
    norm of the matrix before a projection, by default relative to the largest value.
    """
    squares, v = torch.linalg.eigh(gram)
    return leading(squares, v, most, norm)


def leading(
    squares: Tensor, v: Tensor, most: int | None = None, norm: Tensor | None = None
) -> Spectrum:
    """Take the spectrum from what ``eigh`` makes of the Gram matrix: [n] and [n, n], upwards."""
    s = squares.clamp(min=0).sqrt_().flip(0)[:most]
    s = s[s > NOISE * (s[:1] if norm is None else norm)]
    return Spectrum(v[:, len(v) - len(s) :].flip(1), s)


def gram_of(n: int, pieces: Iterable[Tensor]) -> Tensor:
    """Accumulate the Gram matrix [n, n] of a float64 matrix from pieces [rows, n].

    It is symmetric: a quarter of it is copied, which takes a third less time than to multiply all.
    """
    gram, half = torch.zeros(n, n, dtype=torch.float64), n // 2
    for piece in pieces:
        first, second = piece[:, :half], piece[:, half:]
        gram[:half, :half].addmm_(first.mT, first)
        gram[:, half:].addmm_(piece.mT, second)
    gram[half:, :half] = gram[:half, half:].mT
    return gram


def whitening(gram: Tensor, orthonormal: int = 0) -> Tensor:
    """Compute the inverse square root [n, n] of a Gram matrix.

    A matrix A = P D Qᵀ times that of its own Gram matrix is P Qᵀ, the nearest matrix to A with
    orthonormal columns (the Procrustes solution). For linearly dependent columns it is a partial
    isometry onto their span. ``orthonormal``: so many columns, the first, are so already. The l
    others then meet them in l dimensions at most; in all further ones nothing changes.
    """
    k, n_others = orthonormal, len(gram) - orthonormal
    if n_others >= k:
        v, s = spectrum(gram)
        return (v / s) @ v.mT
    q, r = torch.linalg.qr(gram[:k, k:])
    eye = torch.eye(n_others, dtype=gram.dtype)
    met = whitening(torch.cat([torch.cat([eye, r], 1), torch.cat([r.mT, gram[k:, k:]], 1)]))
    met[:n_others, :n_others] -= eye
    basis = gram.new_zeros(len(gram), 2 * n_others)
    basis[:k, :n_others], basis[k:, n_others:] = q, eye
    found: Tensor = basis @ met @ basis.mT
    found.diagonal()[:k].add_(1)
    return found


def side_by_side(spectra: Sequence[Spectrum]) -> Rows:
    """Build the function that computes rows of each task vector times its `Spectrum.to_left`."""
    to_left = [each.to_left for each in spectra]
    return lambda deltas: torch.cat(
        [delta @ each for delta, each in zip(deltas, to_left, strict=True)], dim=1
    )


def scaled_right(spectra: Sequence[Spectrum], *, flat: bool, orthonormal: int = 0) -> Tensor:
    """Concatenate right singular vectors, make them orthonormal and scale them: S V⊥ᵀ [k, n].

    ``flat``: replace every singular value by the mean of all; ``orthonormal``: see `whitening`.
    """
    v, s = (torch.cat(each, dim=-1) for each in zip(*spectra, strict=True))
    s = s.mean().expand(len(s)) if flat else s
    return (v @ whitening(v.mT @ v, orthonormal)).mul_(s).mT


def evened(common: Spectrum) -> Rows:
    """Build the function that computes rows of mean(S) U Vᵀ from those of the task vectors.

    ``common``: the spectrum U S Vᵀ of their sum.
    """
    v, s = common
    flat = (v * (s.mean() / s)) @ v.mT
    return lambda deltas: total(deltas) @ flat


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
        left, right = side_by_side(spectra), scaled_right(spectra, flat=False)
        overlap = gram_of(len(right), (left(piece.deltas) for piece in matrix.pieces()))
        right = whitening(overlap) @ right
        return lambda deltas: left(deltas) @ right


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
        gram = gram_of(matrix.shape[1], (total(piece.deltas) for piece in matrix.pieces()))
        return evened(spectrum(gram))


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
        announce(sources, "iso_cts", "decompositions", work(lambda n: 2 * n + 4, lambda n: n + 2))

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
        squares, v = torch.linalg.eigh(gram)
        del gram
        common = leading(squares, v, n - n_own * matrix.n_experts)
        if n_own == 0:
            return evened(common)
        k, to_left = len(common.s), common.to_left
        rest = v[:, : n - k].clone()
        del v
        found = [outside(to_left, rest, matrix, i, n_own) for i in range(matrix.n_experts)]
        owns, along = [own for own, _ in found], torch.cat([each for _, each in found], dim=1)
        own_left, of_sum = side_by_side(owns), torch.cat([to_left, to_left @ along.neg_()], dim=1)

        def left(deltas: Sequence[Tensor], first: int = 0) -> Tensor:
            rows = total(deltas) @ of_sum[:, first:]
            rows[:, k - first :] += own_left(deltas)
            return rows

        right = scaled_right([common, *owns], flat=True, orthonormal=k)
        first = 0 if matrix.turned else k  # then own left vectors are orthogonal to the common ones
        pieces = (left(piece.deltas, first) for piece in matrix.pieces())
        overlap = gram_of(len(right) - first, pieces)
        right[first:] = whitening(overlap, k - first) @ right[first:]
        return lambda deltas: left(deltas) @ right

    def own_directions(self, rank: int, n_experts: int) -> int:
        """Compute the number of directions each expert adds to a matrix of full rank ``rank``."""
        left = rank - int(rank * self.common_space_fraction)
        return min(round(left / n_experts), rank // n_experts)


def outside(
    to_left: Tensor, rest: Tensor, matrix: Matrix, expert: int, most: int
) -> tuple[Spectrum, Tensor]:
    """Compute the spectrum, up to ``most`` values, of a task vector off the common left vectors.

    ``to_left``: of the sum of the task vectors, [n, k]; ``rest``: its other right vectors,
    [n, n - k]. Also returns the products of the k common left vectors with the task vector and with
    its own `Spectrum.to_left`, [k, own]: 0 for a turned matrix, whose left vectors are over the
    columns.
    """
    n = matrix.shape[1]
    if matrix.turned:
        gram = gram_of(n, (piece.deltas[expert] for piece in matrix.pieces()))
        v, s = spectrum(rest.mT @ gram @ rest, most, gram.trace().sqrt())
        return Spectrum(rest @ v, s), gram.new_zeros(to_left.shape[1], len(s))
    crossed = torch.zeros(n, n, dtype=torch.float64)

    def delta(piece: Piece) -> Tensor:
        found = piece.deltas[expert]
        crossed.addmm_(total(piece.deltas).mT, found)
        return found

    gram = gram_of(n, map(delta, matrix.pieces()))
    norm, along = gram.trace().sqrt(), to_left.mT @ crossed
    own = spectrum(gram.addmm_(along.mT, along, alpha=-1), most, norm)
    return own, along @ own.to_left


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    for name, method, paper in (
        ("tsv", TaskSingularVectors, "Gargiulo et al. 2024, arXiv:2412.00081"),
        ("iso_c", IsoC, "Marczak et al. 2025, arXiv:2502.04959"),
        ("iso_cts", IsoCTS, "Marczak et al. 2025, arXiv:2502.04959"),
    ):
        register(name, method, needs_base=True, paper=paper)
