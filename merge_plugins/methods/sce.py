"""SCE: weigh models by the energy of their high-variance changes, and elect signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Slot, Weight, parameter
from merge_plugins.methods._fields import check_share, int8_mask_field
from merge_plugins.ops.arithmetic import added, elected, keep_largest, sums, task_vectors
from merge_plugins.ops.selection import as_measured, cuts
from merge_plugins.plugins import hookimpl

SMALLEST = 1e-6
"""Smallest total energy for unequal weights, and smallest sum of weights divided by."""

PIECE = 1 << 17
"""Entries converted to float64 at a time."""


def spread(slot: Slot) -> Sequence[Tensor]:
    """Compute the variance of the task vectors over the models: one tensor [*shape], in a list.

    Computed in float64 and rounded once, like torch's ``var``, in a quarter of its time.
    """
    deltas = task_vectors(slot)
    variance = torch.empty(slot.shape, dtype=deltas[0].dtype, device=deltas[0].device)
    each = (torch.split(x.reshape(-1), PIECE) for x in (variance, *deltas))
    for part, *parts in zip(*each, strict=True):
        mean = torch.zeros_like(part, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for delta in parts:
            mean += delta
        mean /= len(parts)
        for delta in parts:
            apart = delta.double().sub_(mean)
            squares.addcmul_(apart, apart)
        part.copy_(squares.div_(len(parts)))
    return [variance]


@dataclass(frozen=True)
class Sce:
    """Select, calculate, erase [Wan et al. 2024, FuseChat, parameter merging].

    Keep the entries with the highest variance over the models; weigh each model by the mean square
    of its remaining task vector; elect signs as in TIES; average. Numbers are mergekit's,
    including where it rounds to the inputs' dtype.
    """

    select_topk: float = parameter(
        1.0, doc="share kept of the entries in which the models differ, in [0, 1]; 1 keeps all"
    )
    int8_mask: bool = int8_mask_field()
    granularity = ELEMENT

    def __post_init__(self) -> None:
        check_share("select_topk", (self.select_topk,))

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cut of the variances, and each model's weight [N] in the inputs' dtype."""
        cut: dict[str, Tensor] = {}
        if self.select_topk < 1 and weight.shape.numel():
            (differ,) = sums(weight, lambda block: [v.float().sign() for v in spread(block)])
            cut = as_measured(cuts([weight], spread, [[int(self.select_topk * int(differ))]]))
        dtype = weight.dtype

        def squares(block: Slot) -> Sequence[Tensor]:
            return [delta.square().float() for delta in self.selected(block, cut)]

        energy = (sums(weight, squares) / max(1, weight.shape.numel())).to(dtype)
        total = energy.sum()
        even = torch.full_like(energy, 1 / len(energy))
        return {**cut, "weight": even if float(total) < SMALLEST else energy / total}

    def selected(self, slot: Slot, cut: Mapping[str, Tensor]) -> list[Tensor]:
        """Zero the entries of task vectors with low variance over the models: N of [*shape]."""
        deltas = task_vectors(slot)
        if not cut:
            return deltas
        (variance,) = spread(slot)
        kept = keep_largest(variance, slot, cut["threshold"][0, 0], cut["last"][0, 0]).sign()
        return [delta * kept for delta in deltas]

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + elected average of the selected entries: [*shape] in the inputs' dtype."""
        cut = {key: slot.measured[key] for key in ("threshold", "last") if key in slot.measured}
        deltas, weight = self.selected(slot, cut), slot.measured["weight"].tolist()
        terms = [(delta * w).float() for delta, w in zip(deltas, weight, strict=True)]
        total, share = elected(terms, weight, tie=1.0, leaning=added(deltas))
        share = share.to(deltas[0]).clamp(min=SMALLEST)
        return slot.base + total.to(deltas[0].dtype) / share


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Wan et al. 2024, arXiv:2408.07990"
    register("sce", Sce, needs_base=True, paper=paper)
