"""What mergekit's own methods compute, in float64 and without a thought for memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def slerp(first: Tensor, second: Tensor, t: float, dim: int | None = None) -> Tensor:
    """Return slerp of vectors along ``dim``, or of whole weights; lengths stay."""
    if dim is None:
        return slerp(first.reshape(-1), second.reshape(-1), t, 0).view(first.shape)
    lengths = first.norm(dim=dim, keepdim=True) * second.norm(dim=dim, keepdim=True)
    angle = ((first * second).sum(dim, keepdim=True) / lengths).clamp(-1, 1).acos()
    arc = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / angle.sin()
    return torch.where(angle.sin() < 1e-6, (1 - t) * first + t * second, arc)


def multislerp(x: Tensor, weight: Sequence[float], *, normalize: bool = True) -> Tensor:
    """Return one step of Buss and Fillmore's iteration, from the mean, times the mean length."""
    w = torch.tensor(weight, dtype=torch.float64)
    w = w / w.sum() if normalize else w
    lengths = x.reshape(len(x), -1).norm(dim=1)
    w, lengths = (each.view(-1, *[1] * (x.ndim - 1)) for each in (w, lengths))
    units = x / lengths
    mean = (w * units).sum(0)
    mean = mean / mean.norm()
    tangents = [u - (u * mean).sum() * mean for u in units]
    tangent = sum(a * v for a, v in zip(w, tangents, strict=True))
    step = tangent.norm()  # type: ignore[union-attr]
    sinc = step.sin() / step if step > 0 else 1.0
    return (mean * step.cos() + tangent * sinc) * (w * lengths).sum()


def karcher(x: Tensor, steps: int = 10) -> Tensor:
    """Return the centre of mass of the directions, by steps of its fixed point, in full space."""
    lengths = [one.norm() for one in x]
    units = [one / length for one, length in zip(x, lengths, strict=True)]
    mean = sum(units) / sum(units).norm()  # type: ignore[union-attr,arg-type]
    for _ in range(steps):
        tangent = torch.zeros_like(mean)
        for unit in units:
            cosine = (unit * mean).sum().clamp(-1, 1)
            angle = cosine.acos()
            if angle > 1e-9:
                tangent += angle / angle.sin() * (unit - cosine * mean) / len(units)
        if (step := tangent.norm()) < 1e-5:
            break
        mean = step.cos() * mean + step.sin() * tangent / step
    return mean * sum(lengths) / len(lengths)


def sce(b: Tensor, x: Tensor, topk: float = 1.0) -> Tensor:
    """Return FuseChat's select, calculate, erase."""
    d = x - b
    if topk < 1:
        variance = d.var(0, unbiased=False).reshape(-1)
        kept = variance.topk(int(topk * int((variance != 0).sum()))).indices
        d = d * torch.zeros_like(variance).index_fill(0, kept, 1.0).view(b.shape)
    w = d.square().reshape(len(d), -1).mean(1)
    w = (w / w.sum() if w.sum() >= 1e-6 else torch.full_like(w, 1 / len(w))).view(-1, *[1] * b.ndim)
    agree = w * (d.sign() == torch.where(d.sum(0) >= 0, 1.0, -1.0))
    return b + (agree * d).sum(0) / agree.sum(0).clamp(min=1e-6)


def ram(b: Tensor, x: Tensor, epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Tensor:
    """Return RAM, or with ``r`` RAM+ on one weight."""
    d = (x - b) * ((x - b).abs() > epsilon)
    changed = d != 0
    n = changed.sum(0)
    for i in range(len(d)):
        alone, together = int((changed[i] & (n == 1)).sum()), int((changed[i] & (n > 1)).sum())
        ratio = together / alone if alone else 0.0
        d[i] = torch.where(n == 1, d[i] * (1 + r * min(ratio, alpha)), d[i])
    return b + d.sum(0) / n.clamp(min=1)


def nearswap(b: Tensor, x: Tensor, t: float) -> Tensor:
    """Return the base, swapped where the models are close."""
    share = (t / (x - b).abs().clamp(min=1e-6)).clamp(max=1)
    return share * x + (1 - share) * b


def arcee_fusion(b: Tensor, x: Tensor) -> Tensor:
    """Return the base with the changes whose importance is an outlier."""
    p, q = x.softmax(-1), b.softmax(-1)
    importance = (x - b).abs() * (p * ((p + 1e-8) / (q + 1e-8)).log()).sum(-1, keepdim=True)
    ordered = importance.reshape(-1).sort().values
    low, middle, high = (ordered[math.floor(s * (len(ordered) - 1))] for s in (0.25, 0.5, 0.75))
    return torch.where(importance >= middle + 1.5 * (high - low), x, b)
