"""Model Stock: move from the base towards the mean, as far as the angles of task vectors allow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, WHOLE, Granularity, Slot, Weight, parameter
from merge_plugins.ops.arithmetic import dot_products, rounded, task_vectors
from merge_plugins.plugins import hookimpl


def share_of_mean(dots: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute t = N cos / (1 + (N-1) cos), cos the mean over pairs [Jang et al. 2024, eq. 5].

    ``dots``: dot products of the N task vectors, [..., N, N]. The result, [...], is rounded to
    ``dtype`` at every step, and 0 where the denominator vanishes.
    """
    n = dots.shape[-1]
    norms = rounded(dots.diagonal(dim1=-2, dim2=-1).sqrt().float(), dtype)
    cosines = []
    for i, j in combinations(range(n), 2):
        product = rounded(norms[..., i] * norms[..., j], dtype).clamp(min=1e-6)
        cosines.append(rounded(rounded(dots[..., i, j].float(), dtype) / product, dtype))
    cosine = rounded(torch.stack(cosines).clamp(-1, 1).mean(0), dtype)
    below = rounded(1 + rounded((n - 1) * cosine, dtype), dtype)
    share = rounded(rounded(n * cosine, dtype) / below, dtype)
    return torch.where(below.abs() < 1e-6, torch.zeros_like(share), share)


def row_products(slot: Slot) -> Tensor:
    """Compute dot products of the task vectors' rows: float32 [*shape[:-1], N, N]."""
    deltas = [delta.float() for delta in task_vectors(slot)]
    products = [[rounded(a * b, slot.dtype).sum(-1) for b in deltas] for a in deltas]
    for i, delta in enumerate(deltas):
        products[i][i] = delta.square().sum(-1)
    return torch.stack([torch.stack(row, dim=-1) for row in products], dim=-2)


@dataclass(frozen=True)
class ModelStock:
    """Base plus a share of the mean task vector; the share follows from the mean cosine."""

    filter_wise: bool = parameter(False, doc="one share per row instead of one per weight")
    shows_damage = True

    @property
    def granularity(self) -> Granularity:
        """WHOLE if each row has its own share, else ELEMENT."""
        return WHOLE if self.filter_wise else ELEMENT

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute this weight's share of the mean, float32 []; empty for ``filter_wise``."""
        if self.filter_wise:
            return {}
        dots = dot_products(weight, task_vectors, weight.dtype)
        return {"share": share_of_mean(dots, weight.dtype)}

    def __call__(self, slot: Slot) -> Tensor:
        """Return t * mean(experts) + (1 - t) * base: [*shape]; see `between`."""
        if self.filter_wise:
            share = share_of_mean(row_products(slot), slot.dtype)
            share = share.unsqueeze(-1) if slot.shape else share
        else:
            share = slot.measured["share"].to(slot.base.device)
        return between(slot, share, slot.dtype)


@dataclass(frozen=True)
class StockMerging:
    """Base plus a share of the mean task vector, from its cosines [WIDEN: stock_merging]."""

    clamp: bool = parameter(
        True,
        doc="clamp the share to [0, 1]; false: as in MergeLLM, negative if the models disagree, "
        "which moves the merge away from them",
    )
    granularity = ELEMENT
    shows_damage = True

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute this weight's share of the mean: float32 []."""
        dots = dot_products(weight, lambda block: block.deltas().unbind())
        share = share_of_mean(dots, torch.float32)
        return {"share": share.clamp(0, 1) if self.clamp else share}

    def __call__(self, slot: Slot) -> Tensor:
        """Return t * mean(experts) + (1 - t) * base: float32 [*shape]."""
        return between(slot, slot.measured["share"], torch.float32)


def between(slot: Slot, share: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute share * mean(experts) + (1 - share) * base: [*shape], rounded at every step.

    To ``dtype`` if that has 16 bits, else to float32.
    """
    held = dtype if dtype.itemsize == 2 else torch.float32  # torch rounds to that, after each step
    base, share = slot.base.to(held), share.to(held)
    first, second, *others = (expert.to(held) for expert in slot.experts)
    total = functools.reduce(Tensor.add_, others, first + second)
    return total.div_(len(slot.experts)).mul_(share).add_(base * (1 - share))


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    facts = {"needs_base": True, "min_experts": 2, "paper": "Jang et al. 2024, arXiv:2403.19522"}
    register("model_stock", ModelStock, **facts)
    register("stock_merging", StockMerging, **facts)
