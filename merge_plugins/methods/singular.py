"""Methods that merge the singular vectors and values of task vectors: TSV-Merge, Iso-C, Iso-CTS.

Published for vision transformers, whose linear layers they take as matrices while averaging every
other weight; so do these, in float64. Singular values below 1e-6 of a matrix's largest are
rounding noise and count as none: of a task vector of lower rank, such as a LoRA adapter's, the
papers' formulas would mix in vectors that no expert has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from merge_plugins.api import Slot, Sources, parameter
from merge_plugins.hookspecs import hookimpl
from merge_plugins.matrices import Deltas, announce, by_matrix
from merge_plugins.methods.task_vectors import check_share, lambda_field

NOISE = 1e-6
"""Singular values below this share of the largest are none: task vectors are known to float32."""


class Singular(NamedTuple):
    """Singular vectors and values: ``u`` [m, k], ``s`` [k], ``vt`` [k, n], largest first."""

    u: Tensor
    s: Tensor
    vt: Tensor

    def first(self, k: int) -> Singular:
        """The k largest, or all if there are fewer."""
        return Singular(self.u[:, :k], self.s[:k], self.vt[:k])


def decomposed(matrix: Tensor) -> Singular:
    """Return the economy decomposition of a float64 matrix [m, n], without what is `NOISE`.

    From the eigenvectors of the smaller Gram matrix, in a fraction of the time and memory of an
    SVD. Orthonormal up to 2e-16 (largest / smallest value)², so to 2e-4 in the worst case, where a
    value is hardly more than noise.
    """
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vt = decomposed(matrix.mT)
        return Singular(vt.mT, s, u.mT)
    _, v = torch.linalg.eigh(matrix.mT @ matrix)  # smallest first
    v = v.flip(1)
    u = matrix @ v
    s = u.norm(dim=0)
    found = Singular(u.div_(s.clamp(min=torch.finfo(s.dtype).tiny)), s, v.mT)
    return found.first(int((s > NOISE * s[:1]).sum()))


def orthogonalized(columns: Tensor) -> Tensor:
    """Return the nearest orthonormal columns: float64 [m, k], the Procrustes solution.

    P Qᵀ of the decomposition P D Qᵀ. Where columns depend on each other it is a partial isometry:
    what they span, and nothing else.
    """
    p, _, qt = decomposed(columns)
    return p @ qt


def recombined(parts: Iterable[Singular], *, flat: bool) -> Tensor:
    """Return U S Vᵀ of singular vectors put side by side and made orthonormal: float64 [m, n].

    ``flat``: every singular value is replaced by the mean of all.
    """
    us, ss, vts = zip(*parts, strict=True)
    s = torch.cat(ss)
    if flat and len(s):
        s = s.mean().expand(len(s))
    up, down = orthogonalized(torch.cat(us, dim=1)), orthogonalized(torch.cat(vts).mT)
    return (up * s) @ down.mT


def decomposition_cost(n_decompositions: Callable[[int], int]) -> Callable[[int, int, int], float]:
    """Return the cost of economy decompositions, of which there are so many for N experts.

    4 m n² + 9 n³ operations for n <= m: two products, and the eigenvectors of a symmetric matrix
    [Golub & Van Loan, 4th ed., sec. 8.3.1].
    """

    def cost(outputs: int, inputs: int, n_experts: int) -> float:
        n, m = sorted((outputs, inputs))
        return n_decompositions(n_experts) * (4.0 * m * n**2 + 9.0 * n**3)

    return cost


@dataclass(frozen=True)
class TaskSingularVectors:
    """Keep each expert's leading 1/N of the singular vectors, decorrelate, add up [Gargiulo 2024].

    TSV-Merge, algorithm 1: with the first r/N components of each task vector side by side as
    U S Vᵀ, the merged task vector is U⊥ S V⊥ᵀ, where U⊥ and V⊥ are the orthonormal matrices
    nearest to U and V (orthogonal Procrustes). One component at least is kept of each expert.
    """

    lambda_: float = lambda_field()

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""
        announce(sources, "tsv", "decompositions", decomposition_cost(lambda n: n + 2))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]."""
        return by_matrix(slot, self.lambda_, self.merge)

    def merge(self, deltas: Deltas) -> Tensor:
        """Merge the task vectors of one matrix: float64 [m, n]."""

        def parts() -> Iterable[Singular]:
            for delta in deltas:
                found = decomposed(delta).first(max(1, min(delta.shape) // len(deltas)))
                yield Singular(*(tensor.clone() for tensor in found))  # let go of the others

        return recombined(parts(), flat=False)


@dataclass(frozen=True)
class IsoC:
    """Sum of task vectors with all singular values alike [Marczak et al. 2025].

    Iso-C: of the sum of the task vectors, U S Vᵀ, the merged one is mean(S) U Vᵀ.
    """

    lambda_: float = lambda_field()

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""
        announce(sources, "iso_c", "decompositions", decomposition_cost(lambda n: 1))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]."""
        return by_matrix(slot, self.lambda_, self.merge)

    def merge(self, deltas: Deltas) -> Tensor:
        """Merge the task vectors of one matrix: float64 [m, n]."""
        u, s, vt = decomposed(functools.reduce(Tensor.add_, deltas))
        return (u @ vt).mul_(s.mean() if len(s) else 0.0)


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

    def __post_init__(self) -> None:
        check_share("common_space_fraction", (self.common_space_fraction,))

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""
        announce(sources, "iso_cts", "decompositions", decomposition_cost(lambda n: n + 3))

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]."""
        return by_matrix(slot, self.lambda_, self.merge)

    def merge(self, deltas: Deltas) -> Tensor:
        """Merge the task vectors of one matrix: float64 [m, n]."""
        together = functools.reduce(Tensor.add_, deltas)
        n_own = self.own_directions(min(together.shape), len(deltas))
        n_common = min(together.shape) - n_own * len(deltas)
        common = decomposed(together).first(n_common)

        def parts() -> Iterable[Singular]:
            yield common
            for delta in deltas if n_own else ():
                delta -= common.u @ (common.u.mT @ delta)
                yield Singular(*(tensor.clone() for tensor in decomposed(delta).first(n_own)))

        return recombined(parts(), flat=True)

    def own_directions(self, rank: int, n_experts: int) -> int:
        """How many directions each expert adds to a matrix of full rank ``rank``."""
        left = rank - int(rank * self.common_space_fraction)
        return min(round(left / n_experts), rank // n_experts)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the family."""
    for name, method, paper in (
        ("tsv", TaskSingularVectors, "Gargiulo et al. 2024, arXiv:2412.00081"),
        ("iso_c", IsoC, "Marczak et al. 2025, arXiv:2502.04959"),
        ("iso_cts", IsoCTS, "Marczak et al. 2025, arXiv:2502.04959"),
    ):
        register(name, method, matrices=True, needs_base=True, paper=paper)
