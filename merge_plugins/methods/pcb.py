"""PCB-Merging: weigh entries by a competition within each task and between tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Kernel, Slot, Sources, Weight, parameter
from merge_plugins.methods._fields import check_share, lambda_field
from merge_plugins.methods.mergellm import Scope
from merge_plugins.ops.arithmetic import keep_largest
from merge_plugins.ops.selection import as_measured, cuts
from merge_plugins.plugins import hookimpl

Pair = tuple[int, int]


def products(slot: Slot) -> dict[Pair, Tensor]:
    """Multiply task vectors entry by entry, t_i t_j for i <= j: float32 [*shape] each."""
    deltas = slot.deltas()
    pairs = combinations_with_replacement(range(len(deltas)), 2)
    return {(i, j): deltas[i] * deltas[j] for i, j in pairs}


@dataclass(frozen=True)
class _Balance:
    """Balances of entries; fields are float64 [N (N + 1) / 2], by pair of task vectors i <= j."""

    low: Tensor
    """Smallest product."""
    high: Tensor
    """Largest product."""
    inter: Tensor
    """Mean of exp(norm)."""
    intra: Tensor
    """Mean of exp(N norm), used for pairs i = j only."""

    def normed(self, slot: Slot) -> dict[Pair, Tensor]:
        """Scale products to [0, 1], or to 0 if all are equal: float32 [*shape] each."""
        width = torch.where(self.high > self.low, self.high - self.low, 1.0)
        each = zip(products(slot).items(), self.low.tolist(), width.tolist(), strict=True)
        return {pair: product.sub_(low).div_(size) for (pair, product), low, size in each}

    def __call__(self, slot: Slot) -> list[Tensor]:
        """Compute each expert's balances times the squared number of entries: N of [*shape]."""
        n = len(slot.experts)
        intra: list[Tensor] = []
        inter = [torch.zeros(slot.shape) for _ in range(n)]
        means = zip(self.inter.log().tolist(), self.intra.log().tolist(), strict=True)
        for ((i, j), normed), (other, own) in zip(self.normed(slot).items(), means, strict=True):
            if i == j:
                intra.append((normed * n).sub_(own).exp_())
            share = normed.sub_(other).exp_()
            for expert in {i, j}:
                inter[expert] += share
        return [one.mul_(two) for one, two in zip(inter, intra, strict=True)]

    @classmethod
    def over(cls, weights: Sequence[Weight]) -> _Balance:
        """Measure weights together, none of them empty, reading each twice."""
        n, n_experts = sum(math.prod(weight.shape) for weight in weights), weights[0].n_experts

        def ends(block: Slot) -> Tensor:
            return torch.stack([torch.stack(x.aminmax()) for x in products(block).values()])

        each = torch.stack([one for weight in weights for one in weight.map_blocks(ends)]).double()
        low, high = each[..., 0].amin(0), each[..., 1].amax(0)
        ranged = cls(low, high, torch.ones_like(low), torch.ones_like(low))

        def sums(block: Slot) -> Tensor:
            each = ranged.normed(block).values()
            sums = [[(x * k).exp_().sum(dtype=torch.float64) for x in each] for k in (1, n_experts)]
            return torch.tensor(sums, dtype=torch.float64)

        each = torch.stack([one for weight in weights for one in weight.map_blocks(sums)])
        return cls(low, high, *(each.sum(0) / n))


@dataclass(frozen=True)
class _Balanced:
    """Weighted average of task vectors, with balances and their cuts measured."""

    balance: _Balance
    cut: Mapping[str, Tensor]
    lambda_: float

    def __call__(self, slot: Slot) -> Tensor:
        total, norm = torch.zeros(slot.shape), torch.zeros(slot.shape)
        rows = self.cut["threshold"][:, 0], self.cut["last"][:, 0]
        each = zip(self.balance(slot), slot.deltas(), *rows, strict=True)
        for balance, delta, threshold, last in each:
            kept = keep_largest(balance, slot, threshold, last)
            norm += kept
            total.addcmul_(kept, delta)
        total.div_(torch.where(norm > 0, norm, 1.0))
        return total.mul_(self.lambda_).add_(slot.base)


@dataclass(frozen=True)
class PcbMerging:
    """Average of task vectors weighed by a competition of their entries [Du et al. 2024].

    The balance of each entry of task vector t_i is
    softmax(N norm(t_i t_i)) * sum_j softmax(norm(t_i t_j)): products are taken entry by entry, norm
    scales to [0, 1], softmax runs over all entries and j over all N experts. Task vectors are
    averaged with the largest balances of each expert as weights of its entries; others weigh 0.
    """

    density: float = parameter(
        0.2, doc="share of each expert's entries kept, in [0, 1]", alias=("pcb_ratio",)
    )
    lambda_: float = lambda_field()
    scope: Scope = parameter(
        "model", doc="normalise and rank over the whole model (the paper), or within each weight"
    )
    granularity = ELEMENT
    measured_by = ("density",)

    def __post_init__(self) -> None:
        check_share("density", (self.density,))

    def over(self, weights: Sequence[Weight]) -> _Balanced:
        """Build the kernel over all the given weights together, reading each three times."""
        balance = _Balance.over(weights)
        kept = int(self.density * sum(math.prod(weight.shape) for weight in weights))
        cut = as_measured(cuts(weights, balance, [[kept]] * weights[0].n_experts))
        return _Balanced(balance, cut, self.lambda_)

    def prepare(self, sources: Sources) -> Kernel | None:
        """Normalise and rank over the whole model for ``scope: model``."""
        if self.scope == "tensor":
            return None
        some = [weight for weight in sources.slots() if math.prod(weight.shape)]
        return self.over(some) if some else None

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the normalisation of this weight's balances, and their cuts."""
        if not math.prod(weight.shape):
            return {}
        kernel = self.over([weight])
        return {**vars(kernel.balance), **kernel.cut}

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * weighted average of task vectors: float32 [*shape]."""
        measured = dict(slot.measured)
        if not measured:
            return slot.base.to(torch.float32, copy=True)
        cut = {key: measured.pop(key) for key in ("threshold", "last")}
        return _Balanced(_Balance(**measured), cut, self.lambda_)(slot)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Du et al. 2024, arXiv:2410.02396"
    register("pcb", PcbMerging, needs_base=True, paper=paper)
