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


def gram_of(n: int, pieces: Iterable[Tensor], first: int = 0) -> Tensor:
    """Accumulate the Gram matrix [n, n] of a float64 matrix from pieces [rows, n].

    Of its columns, those from ``first`` on: [n, n - first]. It is symmetric: a part of it is
    copied, a quarter of the whole, which takes a third less time than to multiply all.
    """
    middle = (first + n) // 2
    at, gram = middle - first, torch.zeros(n, n - first, dtype=torch.float64)
    for piece in pieces:
        gram[:middle, :at].addmm_(piece[:, :middle].mT, piece[:, first:middle])
        gram[:, at:].addmm_(piece.mT, piece[:, middle:])
    gram[middle:, :at] = gram[first:middle, at:].mT
    return gram


def whitening(columns: Tensor) -> Tensor:
    """Compute the inverse square root [n, n] of a Gram matrix from its last columns, [n, l].

    A matrix A = P D Qᵀ times that of its own Gram matrix is P Qᵀ, the nearest matrix to A with
    orthonormal columns (the Procrustes solution). For linearly dependent columns it is a partial
    isometry onto their span. The first n - l columns of A are orthonormal already; the others then
    meet them in l dimensions at most, and in all further ones nothing changes.
    """
    n, n_others = columns.shape
    k = n - n_others
    if n_others >= k:
        v, s = spectrum(completed(columns))
        return (v / s) @ v.mT
    q, r = torch.linalg.qr(columns[:k])
    eye = torch.eye(n_others, dtype=columns.dtype)
    met = whitening(torch.cat([torch.cat([eye, r], 1), torch.cat([r.mT, columns[k:]], 1)]))
    met[:n_others, :n_others] -= eye
    basis = columns.new_zeros(n, 2 * n_others)
    basis[:k, :n_others], basis[k:, n_others:] = q, eye
    found: Tensor = basis @ met @ basis.mT
    found.diagonal()[:k].add_(1)
    return found


def completed(columns: Tensor) -> Tensor:
    """Complete a Gram matrix [n, n] of whose columns all but the last are known, [n, l].

    The first n - l are those of orthonormal columns; see `whitening`.
    """
    n, n_others = columns.shape
    k = n - n_others
    if k == 0:
        return columns
    gram = torch.eye(n, dtype=columns.dtype)
    gram[:, k:], gram[k:, :k] = columns, columns[:k].mT
    return gram


def whitening_of_two(cross: Tensor) -> Tensor:
    """Compute `whitening` [a + b, a + b] for two matrices, each of orthonormal columns.

    ``cross``: products of the first one's columns with the second's, [a, b] = P C Qᵀ. Each pair of
    directions in P and Q meets at an angle of its own, of cosine c, and no other: its part of the
    Gram matrix, [[1, c], [c, 1]], has the eigenvalues 1 + c and 1 - c.
    """
    a, b = cross.shape
    p, cosines, qt = torch.linalg.svd(cross, full_matrices=False)
    sums, differences = (1 + cosines).sqrt(), (1 - cosines).clamp(min=0).sqrt()
    is_noise = differences <= NOISE * sums[:1]
    alike, opposed = 1 / sums, torch.where(is_noise, 0.0, 1 / differences)
    own, other = (alike + opposed) / 2, (alike - opposed) / 2
    found = torch.eye(a + b, dtype=cross.dtype)
    found[:a, :a].addmm_(p * (own - 1), p.mT)
    found[a:, a:].addmm_(qt.mT * (own - 1), qt)
    found[:a, a:] = (p * other) @ qt
    found[a:, :a] = found[:a, a:].mT
    return found


def side_by_side(spectra: Sequence[Spectrum]) -> Rows:
    """Build the function that computes rows of each task vector times its `Spectrum.to_left`."""
    to_left = [each.to_left for each in spectra]
    return lambda deltas: torch.cat(
        [delta @ each for delta, each in zip(deltas, to_left, strict=True)], dim=1
    )


def scaled_right(spectra: Sequence[Spectrum], *, flat: bool) -> Tensor:
    """Concatenate right singular vectors, make them orthonormal and scale them: S V⊥ᵀ [k, n].

    ``flat``: replace every singular value by the mean of all.
    """
    v, s = (torch.cat(each, dim=-1) for each in zip(*spectra, strict=True))
    s = s.mean().expand(len(s)) if flat else s
    if len(spectra) == 2:
        inverse = whitening_of_two(spectra[0].v.mT @ spectra[1].v)
    else:
        inverse = whitening(gram_of(len(s), [v], first=len(spectra[0].s)))
    return (v @ inverse).mul_(s).mT


def evened(common: Spectrum) -> Rows:
    """Build the function that computes rows of mean(S) U Vᵀ from those of the task vectors.

    ``common``: the spectrum U S Vᵀ of their sum.
    """
    v, s = common
    flat = (v * (s.mean() / s)) @ v.mT
    return lambda deltas: total(deltas) @ flat


def operations(outputs: int, inputs: int, products: int, decompositions: int) -> float:
    """Count floating-point operations of products [m, n] by [n, n] and of spectra [n, n], n <= m.

    A product takes 2 m n², the eigenvectors of a symmetric matrix 9 n³ [Golub & Van Loan, 4th ed.,
    sec. 8.3.1].
    """
    n, m = sorted((outputs, inputs))
    return products * 2.0 * m * n**2 + decompositions * 9.0 * n**3


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

        def cost(outputs: int, inputs: int, n_experts: int) -> float:
            return operations(outputs, inputs, n_experts + 4, n_experts + 2)

        announce(sources, "tsv", "decompositions", cost)

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]; see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, turn=Matrix.upright)

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
        announce(sources, "iso_c", "decompositions", lambda m, n, _: operations(m, n, 2, 1))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]; see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, turn=Matrix.upright)

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

        def cost(outputs: int, inputs: int, n_experts: int) -> float:
            if outputs > inputs:
                return operations(outputs, inputs, 2 * n_experts + 3, n_experts + 1)
            return operations(outputs, inputs, n_experts + 4, 1)  # see `outside_columns`

        announce(sources, "iso_cts", "decompositions", cost)

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]; see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge, turn=with_least_work)

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
        k, to_left, experts = len(common.s), common.to_left, range(matrix.n_experts)
        if matrix.turned:
            rest = v[:, : n - k].clone()
            del v
            owns = [outside_columns(rest, matrix, i, n_own) for i in experts]
        else:
            del v
            found = [outside_rows(to_left, matrix, i, n_own) for i in experts]
            owns, along = [own for own, _ in found], torch.cat([each for _, each in found], dim=1)
            to_left = torch.cat([to_left, to_left @ along.neg_()], dim=1)
        own_left = side_by_side(owns)

        def left(deltas: Sequence[Tensor], first: int = 0) -> Tensor:
            rows, own = total(deltas) @ to_left[:, first:], own_left(deltas)
            if matrix.turned:
                return torch.cat([rows, own], dim=1)
            rows[:, k - first :] += own
            return rows

        right = scaled_right([common, *owns], flat=True)
        if matrix.turned:
            overlap = gram_of(len(right), (left(piece.deltas) for piece in matrix.pieces()), k)
            right = whitening(overlap) @ right
        else:  # own left vectors are orthogonal to the common ones
            pieces = (left(piece.deltas, k) for piece in matrix.pieces())
            right[k:] = whitening(gram_of(len(right) - k, pieces)) @ right[k:]
        return lambda deltas: left(deltas) @ right

    def own_directions(self, rank: int, n_experts: int) -> int:
        """Compute the number of directions each expert adds to a matrix of full rank ``rank``."""
        left = rank - int(rank * self.common_space_fraction)
        return min(round(left / n_experts), rank // n_experts)


def with_least_work(matrix: Matrix) -> Matrix:
    """Return a matrix with at least as many rows as columns, flipped also if it is square.

    Turned, it needs smaller spectra: see `outside_columns`.
    """
    rows, columns = matrix.shape
    return matrix if rows > columns else matrix.flipped()


def outside_columns(rest: Tensor, matrix: Matrix, expert: int, most: int) -> Spectrum:
    """Compute the spectrum of a turned task vector, up to ``most`` values, off the common vectors.

    Its columns are a layer's outputs, and over them are the layer's left vectors. ``rest``: all
    directions of the columns but those that are common, orthonormal [n, n - k].
    """
    gram = gram_of(matrix.shape[1], (piece.deltas[expert] for piece in matrix.pieces()))
    v, s = spectrum(rest.mT @ gram @ rest, most, gram.trace().sqrt())
    return Spectrum(rest @ v, s)


def outside_rows(
    to_left: Tensor, matrix: Matrix, expert: int, most: int
) -> tuple[Spectrum, Tensor]:
    """Compute the spectrum of a task vector, up to ``most`` values, off the common left vectors.

    ``to_left``: of the sum of the task vectors, [n, k]. Also returns the products of the k common
    left vectors with the task vector and with its own `Spectrum.to_left`, [k, own].
    """
    n = matrix.shape[1]
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
