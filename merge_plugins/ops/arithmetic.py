"""Arithmetic that several methods share; elementwise, so it runs on any block.

Speed notes, measured per element on one core: torch's float arithmetic takes 0.2 ns, its
comparisons 1 ns, ``where`` and ``masked_fill`` 5 ns. Hence masks here are arithmetic
(``hardshrink``, ``relu``, ``sign``, bits of an integer) wherever that gives the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merge_plugins.api import Slot, Weight
from merge_plugins.ops.selection import INTEGERS

PIECE = 1 << 16
"""Elements that are taken to float64 at a time."""
WAVE = 64
"""Blocks whose sums over one dimension are held at a time; each sum is as long as a row."""


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to what ``dtype`` can hold, still in float32.

    mergekit computes the task-vector family in the dtype of its inputs, and rounds at every step.
    """
    return x if dtype in (torch.float32, torch.float64) else x.to(dtype).float()


def least(value: float, dtype: torch.dtype) -> float:
    """Return ``value``, or if a dtype has that as 0, its least number above 0.

    float16 has nothing between 0 and 6e-8, so a length of 0 would stay one to divide by.
    """
    found = torch.finfo(dtype)
    return max(value, found.tiny * found.eps)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums are taken: float32, or float64 for that."""
    return torch.promote_types(dtype, torch.float32)


def added(tensors: Iterable[Tensor]) -> Tensor:
    """Sum tensors: `wide` [*shape], inputs untouched. ``stack(…).sum(0)`` is ten times slower."""
    first, *others = tensors
    total = first.to(wide(first.dtype), copy=True)
    for tensor in others:
        total.add_(tensor)
    return total


def rounded_sum(tensors: Sequence[Tensor]) -> Tensor:
    """Sum tensors, rounded once to the dtype of the first: [*shape], inputs untouched.

    Two of 16 bits need no float32 in memory: torch adds them in registers, in half the time.
    """
    first, *others = tensors
    total = first + others[0] if len(others) == 1 else added(tensors)
    return total.to(first.dtype)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum weight times tensor: `wide` [*shape], inputs untouched.

    torch converts what it adds by cache lines: as float32 tensors they would be memory of their own
    and take twice the time.
    """
    first, *others = tensors
    total = first.to(wide(first.dtype))
    if total is first:
        total = total * weights[0]
    elif weights[0] != 1:
        total.mul_(weights[0])
    for tensor, weight in zip(others, weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def dot_products(
    weight: Weight,
    vectors: Callable[[Slot], Sequence[Tensor]],
    dtype: torch.dtype = torch.float32,
    *,
    squares: bool = True,
) -> Tensor:
    """Compute all dot products between whole vectors: float64 [N, N], summed block by block.

    What follows from them is rounded to ``dtype``. To 16 bits, products of different vectors are
    rounded before they are summed, as mergekit does; else all is float64, so that the result does
    not depend on the order in which a device sums, nor on its blocks. ``squares``: whether those of
    a vector with itself are needed; else they may be 0.
    """

    def gram(block: Slot) -> Tensor:
        rows = [vector.reshape(-1) for vector in vectors(block)]
        if dtype.itemsize > 2:
            return _exact_gram(rows)
        dots = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for i, row in enumerate(rows):
            if squares:
                unrounded = row.float()
                dots[i, i] = torch.dot(unrounded, unrounded)
            for j in range(i):
                product = row * rows[j]  # rounded, if they have 16 bits
                dots[i, j] = dots[j, i] = block_sum(rounded(product, dtype))
        return dots

    return torch.stack(weight.map_blocks(gram)).sum(0)


def _exact_gram(rows: Sequence[Tensor]) -> Tensor:
    """Compute dot products in float64, on a core in pieces that stay in its cache: [N, N]."""
    n, device = len(rows), rows[0].device
    size = min(PIECE, len(rows[0])) if device.type == "cpu" else len(rows[0])
    room = torch.empty(n, size, dtype=torch.float64, device=device)
    pairs = [(i, j) for i in range(n) for j in range(i + 1)]
    total = torch.zeros(len(pairs), dtype=torch.float64, device=device)
    for pieces in zip(*(torch.split(row, size or 1) for row in rows), strict=True):
        exact = [to[: len(piece)].copy_(piece) for to, piece in zip(room, pieces, strict=True)]
        total += torch.stack([torch.dot(exact[i], exact[j]) for i, j in pairs])
    dots = torch.empty(n, n, dtype=torch.float64, device=device)
    for (i, j), dot in zip(pairs, total, strict=True):
        dots[i, j] = dots[j, i] = dot
    return dots


def vector_norms(
    weight: Weight, vectors: Callable[[Slot], Sequence[Tensor]], dtype: torch.dtype
) -> Tensor:
    """Compute the norms of whole vectors, rounded to ``dtype``: [N]."""
    exact = torch.float64 if dtype.itemsize > 2 else torch.float32

    def squares(block: Slot) -> Tensor:
        rows = [vector.to(exact).reshape(-1) for vector in vectors(block)]
        return torch.stack([torch.dot(row, row) for row in rows]).double()

    return torch.stack(weight.map_blocks(squares)).sum(0).sqrt().to(dtype)


def sums(weight: Weight, terms: Callable[[Slot], Sequence[Tensor]]) -> Tensor:
    """Sum each of ``terms(block)`` over the whole weight: float64 [K].

    terms: float32, K of [*shape].
    """
    return torch.stack(weight.map_blocks(lambda block: block_sums(terms(block)))).sum(0)


def block_sums(terms: Sequence[Tensor]) -> Tensor:
    """Sum each of K terms of one block: float64 [K]."""
    return torch.stack([block_sum(term) for term in terms])


def block_sum(x: Tensor) -> Tensor:
    """Sum all elements of one block: float64 [], off by about 1e-9 of their magnitudes.

    Runs of 64 are summed in float32, a fourth of the time that float64 takes.
    """
    flat = x.float().reshape(-1)
    end = len(flat) // 64 * 64
    return flat[:end].view(-1, 64).sum(-1).double().sum() + flat[end:].double().sum()


def sums_over(weight: Weight, dim: int, terms: Callable[[Slot], Iterable[Tensor]]) -> Tensor:
    """Sum terms over one dimension of the whole weight: float64 [K, *shape without it]."""

    def look(block: Slot) -> Tensor:
        return torch.stack([term.sum(dim) for term in terms(block)])

    total, regions = None, weight.blocks()
    for start in range(0, len(regions), WAVE):
        wave = regions[start : start + WAVE]
        for region, part in zip(wave, weight.map_blocks(look, wave), strict=True):
            if total is None:
                sizes = (size for at, size in enumerate(weight.shape) if at != dim)
                total = torch.zeros(len(part), *sizes, dtype=torch.float64)
            bounds = (slice(*b) for at, b in enumerate(region.bounds) if at != dim)
            box = (slice(None), *bounds)
            total[box] += part
    assert total is not None, "a weight has at least one block"
    return total


def task_vectors(slot: Slot) -> list[Tensor]:
    """Subtract the base from each expert: N of [*shape], in the inputs' dtype, as mergekit does."""
    return [expert - slot.base for expert in slot.experts]


def vectors(slot: Slot) -> list[Tensor]:
    """Compute task vectors if there is a base, else return the models: N of [*shape], one dtype."""
    if slot.maybe_base is not None:
        return task_vectors(slot)
    dtype = slot.dtype
    return [expert.to(dtype) for expert in slot.experts]


def combine(
    slot: Slot,
    deltas: Sequence[Tensor],
    weight: Sequence[float],
    *,
    scale: float,
    normalize: bool,
    elect: bool,
) -> Tensor:
    """Add the weighted sum of task vectors to the base, optionally elected and normalised.

    Election keeps the entries whose sign is the sign of the weighted sum (zero counts as plus) and
    normalising divides by the weights that took part [Yadav et al. 2023, alg. 1; mergekit].
    Rounds to the dtype of ``deltas``, which it may overwrite, where mergekit does: after every
    step but the sums.
    """
    dtype = deltas[0].dtype
    weights = [float(torch.tensor(w, dtype=dtype)) for w in weight]
    terms = [d if w == 1 else d.mul_(w) for d, w in zip(deltas, weights, strict=True)]
    if elect:
        if len(terms) > 2 or len({term.dtype for term in terms}) > 1:  # else a sum is rounded once
            terms = [term.to(wide(dtype)) for term in terms]
        summed, share = elected(terms, weights if normalize else None, tie=1.0)
        total = summed.to(dtype)
    else:
        total = rounded_sum(terms)
        share = torch.tensor(sum(weights))
        share = torch.where(share.abs() < 1e-8, 1.0, share)
    if normalize:
        total.div_(share.to(total))
    if scale != 1:
        total.mul_(scale)
    return total + slot.base


def elected(
    terms: Sequence[Tensor],
    weights: Sequence[float] | None,
    tie: float,
    leaning: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the terms that have the sign of their sum; return that, and the sum of their weights.

    terms: N of [*shape] in one dtype, `wide` if there are more than two, overwritten; ``tie``: the
    sign (+1, -1) where they sum to zero, or 0 to keep nothing there; ``leaning``: a tensor whose
    sign is used instead, overwritten. The second result is never 0, so that the first can be
    divided by it; without weights it is 1.
    """
    if leaning is None:
        leaning = rounded_sum(terms)
    turn = _turning(leaning, tie)
    total, *others = (turn(term).relu_() for term in terms)
    if weights is None:
        share = torch.ones(())
    else:
        share = total.sign().mul_(weights[0])
        for agreeing, weight in zip(others, weights[1:], strict=True):
            share.add_(agreeing.sign(), alpha=weight)
        if min(weights) > 0:
            share.clamp_(min=min(weights))  # only zeros are smaller, and they may be anything
        else:
            share.add_(share.sign().abs_().neg_().add_(1))
    total = functools.reduce(Tensor.add_, others, total)
    return turn(total), share


def _turning(x: Tensor, tie: float) -> Callable[[Tensor], Tensor]:
    """Return what multiplies a tensor by the signs of x in place, by ``tie`` where x is 0.

    x: float [*shape], overwritten; the tensor has its shape and dtype.
    """
    if tie != 1:
        signs = x.sign_().add_(tie / 2).sign_()
        return lambda tensor: tensor.mul_(signs)
    bits = INTEGERS[x.dtype.itemsize]
    flips = x.add_(0.0).view(bits).bitwise_and_(torch.iinfo(bits).min)  # -0 + 0 is 0

    def turn(tensor: Tensor) -> Tensor:
        tensor.view(bits).bitwise_xor_(flips)
        return tensor

    return turn


def keep_largest(x: Tensor, slot: Slot, threshold: Tensor, last: Tensor) -> Tensor:
    """Zero what is below a cut of `merge_plugins.ops.selection`: keeps exactly that many entries.

    x: [*shape]; ``threshold``: magnitude; ``last``: flat position in the whole weight of the last
    entry *at* the threshold that is kept, -1 for none, 2**62 for all.
    """
    limit, n_at = float(threshold), slot.before(int(last) + 1)
    if n_at == x.numel():
        return _at_least(x, limit)
    if n_at == 0:
        return hardshrink(x, limit)
    flat = x.reshape(-1)
    return torch.cat([_at_least(flat[:n_at], limit), hardshrink(flat[n_at:], limit)]).view(x.shape)


def _at_least(x: Tensor, limit: float) -> Tensor:
    """Zero what is below a magnitude: [*shape]; ``hardshrink`` zeros what is at it too."""
    if limit <= 0:
        return x
    below = torch.nextafter(torch.tensor(limit, dtype=x.dtype), torch.tensor(-1.0, dtype=x.dtype))
    return hardshrink(x, float(below))
