"""Truncated singular value decompositions that never hold a full factor."""

from __future__ import annotations

import torch
from torch import Tensor

from merge_plugins.api import LowRank

EXACT = 256
"""Matrices whose shorter side is at most this are decomposed exactly: it takes milliseconds."""
OVERSAMPLING = 16
"""Directions kept beside the rank asked for while iterating, at least."""
ITERATIONS = 4
"""Rounds of subspace iteration. Of a matrix of pure noise, whose spectrum is the flattest there
is, they leave a Frobenius error within 1 % of the smallest possible."""


def truncated_svd(matrix: Tensor, rank: int, generator: torch.Generator) -> LowRank:
    """Compute the ``rank`` leading components, as the factors U sqrt(S) and sqrt(S) Vt.

    matrix: float32 [m, n] on any device. The shorter side decides how: exactly, or by the
    randomised range finder with subspace iteration [Halko, Martinsson & Tropp 2011, alg. 4.4 and
    5.1], whose start ``generator`` (on the CPU) draws. Memory: a few [m, 1.25 rank].
    """
    m, n = matrix.shape
    if rank == 0:
        return LowRank(matrix.new_empty(m, 0), matrix.new_empty(0, n))
    width = rank + max(OVERSAMPLING, rank // 4)
    if min(m, n) <= EXACT or 2 * width >= min(m, n):
        u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        basis = _range(matrix, width, generator)
        u, s, vt = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
        u = basis @ u
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * vt[:rank]
    return LowRank(up.float().contiguous(), down.float().contiguous())


def _range(matrix: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Find an orthonormal basis [m, width] of nearly all of the matrix's range."""
    start = torch.randn(matrix.shape[1], width, generator=generator, device="cpu")
    basis: Tensor = torch.linalg.qr(matrix @ start.to(matrix.device)).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix.mT @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    return basis
