"""What the papers of newer methods define, written down once more, in float64.

Each takes b [*shape], x [N, *shape] like the oracles in contract/, or task vectors t [N, m, n].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def by_matrix(b: Tensor, x: Tensor, scale: float, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """Return base + scale * merge(t) for every matrix, and the mean task vector for vectors."""
    t = x - b
    if b.ndim < 2:
        return b + scale * t.mean(0)
    stack = t.reshape(len(t), -1, *t.shape[-2:])
    merged = torch.stack([merge(stack[:, i]) for i in range(stack.shape[1])])
    return b + scale * merged.view_as(b)


def polar(a: Tensor) -> Tensor:
    p, _, qt = torch.linalg.svd(a, full_matrices=False)
    return p @ qt


def tsv(t: Tensor) -> Tensor:
    """Gargiulo et al. 2024, algorithm 1."""
    k = min(t.shape[1:]) // len(t)
    u, s, vt = torch.linalg.svd(t, full_matrices=False)
    us, vs = (torch.cat([*a[:, :, :k]], dim=1) for a in (u, vt.mT))
    return polar(us) @ torch.diag(s[:, :k].reshape(-1)) @ polar(vs).mT


def iso_c(t: Tensor) -> Tensor:
    """Marczak et al. 2025, Iso-C."""
    u, s, vt = torch.linalg.svd(t.sum(0), full_matrices=False)
    return s.mean() * u @ vt


def iso_cts(t: Tensor, fraction: float) -> Tensor:
    """Marczak et al. 2025, Iso-CTS."""
    n, r = len(t), min(t.shape[1:])
    own = round((r - int(r * fraction)) / n)
    k = r - n * own
    u, s, vt = torch.linalg.svd(t.sum(0), full_matrices=False)
    us, ss, vs = [u[:, :k]], [s[:k]], [vt[:k].mT]
    for one in t:
        left = one - us[0] @ us[0].mT @ one
        u, s, vt = torch.linalg.svd(left, full_matrices=False)
        us, ss, vs = [*us, u[:, :own]], [*ss, s[:own]], [*vs, vt[:own].mT]
    return torch.cat(ss).mean() * polar(torch.cat(us, 1)) @ polar(torch.cat(vs, 1)).mT


def wudi_loss(merged: Tensor, t: Tensor) -> Tensor:
    """Cheng et al. 2025: the interference of a task vector [m, n] with those of the experts."""
    crossed = (merged - t) @ t.mT
    return (crossed.square().sum((1, 2)) / t.square().sum((1, 2))).sum()


def wudi(t: Tensor, steps: int, learning_rate: float) -> Tensor:
    """Cheng et al. 2025: descend from the sum of the task vectors."""
    merged = t.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        wudi_loss(merged, t).backward()
        optimizer.step()
    return merged.detach()


def consensus(b: Tensor, x: Tensor, strictness: tuple[float, ...], k: int, scale: float) -> Tensor:
    """Wang et al. 2024: TALL masks, and where k of them agree."""
    t = x - b
    together = t.sum(0)
    masks = torch.stack(
        [a.abs() >= c * (together - a).abs() for a, c in zip(t, strictness, strict=True)]
    )
    return b + scale * together * (masks.sum(0) >= k)


def unit(a: Tensor) -> Tensor:
    return (a - a.min()) / (a.max() - a.min()) if a.max() > a.min() else torch.zeros_like(a)


def pcb(b: Tensor, x: Tensor, density: float, scale: float) -> Tensor:
    """Du et al. 2024, over one vector of all entries."""
    t = (x - b).reshape(len(x), -1)
    n, d = t.shape
    intra = torch.stack([(n * unit(one * one)).softmax(0) for one in t])
    inter = torch.zeros_like(t)
    for i, j in itertools.product(range(n), repeat=2):
        inter[i] += unit(t[i] * t[j]).softmax(0)
    balance = intra * inter
    weights = torch.zeros_like(balance)
    for row, found in zip(weights, balance, strict=True):
        kept = found.sort(descending=True, stable=True).indices[: int(density * d)]
        row[kept] = found[kept]
    total = weights.sum(0)
    merged = (weights * t).sum(0) / torch.where(total > 0, total, 1.0)
    return b + scale * merged.view_as(b)


def emr(t: Tensor) -> tuple[Tensor, Tensor]:
    """Huang et al. 2024, algorithm 1: what each task adds to the base [N, d], its rescaler [N]."""
    t = t.reshape(len(t), -1)
    sign = t.sum(0).sign()
    unified = sign * torch.where(t * sign > 0, t.abs(), 0.0).amax(0)
    kept = (t * unified > 0) * unified
    rescaler = t.abs().sum(1) / kept.abs().sum(1)
    return rescaler[:, None] * kept, rescaler
