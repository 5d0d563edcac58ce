"""Maths that more than one method uses. Elementwise throughout, so it runs on any block.

Speed notes, measured per element on one core: torch's float arithmetic takes 0.2 ns, its
comparisons 1 ns, ``where`` and ``masked_fill`` 5 ns. Hence masks here are arithmetic
(``hardshrink``, ``relu``, ``sign``, bits of an integer) wherever that says the same thing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merge_plugins.api import Region, Slot
from merge_plugins.blocks import BLOCK


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to what ``dtype`` can hold, still in float32.

    mergekit computes the task-vector family in the dtype of its inputs; this says where it rounds.
    """
    return x if dtype in (torch.float32, torch.float64) else x.to(dtype).float()


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of weight times tensor: float32 [*shape], inputs untouched."""
    first, *others = tensors
    total = torch.mul(first.float(), weights[0])
    for tensor, weight in zip(others, weights[1:], strict=True):
        total.add_(tensor.float(), alpha=weight)
    return total


def dot_products(
    slot: Slot,
    vectors: Callable[[Slot], Sequence[Tensor]],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return all dot products between whole vectors: float64 [N, N], summed block by block.

    ``dtype`` rounds the products of different vectors before they are summed, as mergekit does.
    """

    def gram(block: Slot) -> Tensor:
        rows = [vector.float().reshape(-1) for vector in vectors(block)]
        dots = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for i, row in enumerate(rows):
            dots[i, i] = torch.dot(row, row)
            for j in range(i):
                exact = dtype.itemsize > 2
                dot = torch.dot(row, rows[j]) if exact else rounded(row * rows[j], dtype).sum()
                dots[i, j] = dots[j, i] = dot
        return dots

    return torch.stack(slot.map_blocks(gram)).sum(0)


def task_vectors(slot: Slot) -> list[Tensor]:
    """Return expert minus base, N of float32 [*shape], rounded to the inputs' dtype."""
    base, dtype = slot.base.float(), slot.dtype
    return [rounded(expert.float().sub_(base), dtype) for expert in own(slot.experts)]


def own(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors whose ``.float()`` is a copy that may be overwritten, never an input."""
    return [t.clone() if t.dtype == torch.float32 else t for t in tensors]


def combine(
    slot: Slot,
    deltas: Sequence[Tensor],
    weight: Sequence[float],
    *,
    scale: float,
    normalize: bool,
    elect: bool,
) -> Tensor:
    """Return base + scale * weighted sum of task vectors, optionally elected and normalised.

    Election keeps the entries whose sign is the sign of the weighted sum (zero counts as plus) and
    normalising divides by the weights that took part [Yadav et al. 2023, alg. 1; mergekit].
    Overwrites ``deltas``. Every step is rounded to the inputs' dtype, as mergekit does.
    """
    dtype = slot.dtype
    weights = [float(torch.tensor(w, dtype=dtype)) for w in weight]
    terms = [
        delta if w == 1 else rounded(delta.mul_(w), dtype)
        for delta, w in zip(deltas, weights, strict=True)
    ]
    if elect:
        total, share = elected(terms, weights, 1.0)
        total, share = rounded(total, dtype), rounded(share, dtype)
        share.add_(share.sign().abs_().neg_().add_(1))  # nobody took part: divide zero by one
    else:
        total = rounded(functools.reduce(Tensor.add_, terms), dtype)
        share = rounded(torch.tensor(sum(weights)), dtype)
        share = share if abs(share) >= 1e-8 else torch.tensor(1.0)
    if normalize:
        total = rounded(total.div_(share.to(total.device)), dtype)
    if scale != 1:
        total = rounded(total.mul_(scale), dtype)
    return total.add_(slot.base)


def elected(terms: Sequence[Tensor], weights: Sequence[float], tie: float) -> tuple[Tensor, Tensor]:
    """Return the sum of the terms that have the sign of their sum, and the weights of those.

    terms: N of float32 [*shape], overwritten; ``tie``: the sign (+1, -1) where they sum to zero,
    or 0 to keep nothing there. The second result is 0 where no term took part.
    """
    sign = functools.reduce(Tensor.add_, terms[1:], terms[0].clone()).sign_()
    sign.add_(tie / 2).sign_()
    total, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for term, weight in zip(terms, weights, strict=True):
        agreeing = term.mul_(sign).relu_()
        total.add_(agreeing)
        share.add_(agreeing.sign_(), alpha=weight)
    return total.mul_(sign), share


def keep_largest(x: Tensor, slot: Slot, threshold: Tensor, last: Tensor) -> Tensor:
    """Zero what is below a `Cut` of `merge_plugins.selection`: keeps exactly that many entries.

    x: float32 [*shape]; ``threshold``: magnitude; ``last``: flat position in the whole weight of
    the last entry *at* the threshold that is kept, -1 for none, 2**62 for all.
    """
    limit = float(threshold)
    if int(last) < 0:
        return hardshrink(x, limit)
    if int(last) >= 1 << 62:
        below = torch.nextafter(threshold.float(), torch.tensor(-1.0))
        return x if limit <= 0 else hardshrink(x, float(below))
    kept_ties = (x.abs() == limit) & (slot.index() <= int(last))
    return hardshrink(x, limit).add_(x * kept_ties)


def drop_at_random(x: Tensor, slot: Slot, expert: int, density: float) -> Tensor:
    """Zero each entry with probability 1 - density, in place. x: float32 [*shape], contiguous.

    Counter-based: the fate of entry j depends only on (seed, name, expert, j), so any region,
    block order, thread count and device give the same mask. Resolution of density: 2**-31.
    """
    if density >= 1:
        return x
    limit = round(density * (1 << 31))
    keep = _hash31(slot, expert, x.device).sub_(limit).bitwise_right_shift_(31)  # -1 or 0
    x.view(torch.int32).bitwise_and_(keep)
    return x


def _hash31(slot: Slot, expert: int, device: torch.device) -> Tensor:
    """Return 31 random bits per entry: int32 [*shape], a hash of its position.

    Two rounds of xor-shift and multiply [C. Wellons, "Hash function prospecting", lowbias32],
    keyed twice. torch shifts int32 arithmetically; that makes x and ~x collide, which costs one of
    the 32 bits and no uniformity.
    """
    digest = hashlib.sha256(f"{slot.seed}/{slot.name}/{expert}".encode()).digest()
    first, second = (int.from_bytes(digest[i : i + 4], "little", signed=True) for i in (0, 4))
    x = _counter(slot, device, first)
    x.bitwise_xor_(x >> 16).mul_(0x7FEB352D).bitwise_xor_(x >> 15)
    x.bitwise_xor_(second).mul_(-2073254261).bitwise_xor_(x >> 16)  # 0x846ca68b, signed
    return x.bitwise_and_(0x7FFFFFFF)


def _counter(slot: Slot, device: torch.device, key: int) -> Tensor:
    region = slot.region or Region.whole(slot.shape)
    span = region.span
    if span is not None and span[1] < 1 << 31 and region.numel <= BLOCK:
        start = (span[0] + key + (1 << 31)) % (1 << 32) - (1 << 31)
        return (_ramp(device)[: region.numel] + start).view(region.sizes)
    index = region.index().to(device)
    high = (index >> 32).to(torch.int32).mul_(-1640531527)  # weights of over 4 G entries
    return index.to(torch.int32).bitwise_xor_(high).add_(key)


@functools.cache
def _ramp(device: torch.device) -> Tensor:
    return torch.arange(BLOCK, dtype=torch.int32, device=device)
