"""TIES and Breadcrumbs of MergeLLM (WIDEN) and MergeLM (DARE), with their names and parameters.

Like these repositories, they compute in float32 for models of any dtype. Where a repository's code
would crash, its paper is followed instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Kernel, Slot, Sources, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.methods._fields import check_share
from merge_plugins.ops.arithmetic import elected, keep_largest
from merge_plugins.ops.selection import ALL, as_measured, cuts
from merge_plugins.plugins import hookimpl

Scope = Literal["tensor", "model"]


def deltas(slot: Slot) -> Sequence[Tensor]:
    """Compute the task vectors without rounding: N of float32 [*shape]."""
    return slot.deltas().unbind()


@dataclass(frozen=True)
class _TrimmedTies:
    """TIES with its thresholds and the majority sign measured."""

    scaling_coefficient: float
    threshold: Tensor  # float32 [N]
    majority: float  # +1, -1 or 0

    def trim(self, slot: Slot) -> list[Tensor]:
        """Zero entries below the threshold and keep those equal to it: N of float32 [*shape]."""
        everything = torch.tensor(ALL)
        rows = zip(deltas(slot), self.threshold, strict=True)
        return [keep_largest(delta, slot, threshold, everything) for delta, threshold in rows]

    def signs(self, weight: Weight) -> Tensor:
        """Sum the elected signs over all entries of a weight: float64 []."""

        def of(block: Slot) -> Tensor:
            summed = functools.reduce(Tensor.add_, self.trim(block))
            return summed.sign_().sum().double()  # whole numbers: float32 is exact in a block

        return torch.stack(weight.map_blocks(of)).sum()

    def __call__(self, slot: Slot) -> Tensor:
        trimmed = self.trim(slot)
        total, count = elected(trimmed, (1.0,) * len(trimmed), self.majority)
        return total.div_(count).mul_(self.scaling_coefficient).add_(slot.base)


@dataclass(frozen=True)
class TiesMerging:
    """Trim small changes, elect signs, average what agrees [Yadav et al. 2023; MergeLLM, MergeLM].

    Like the code of both repositories, drops one entry less than param_value_mask_rate, keeps
    entries equal to the threshold, and elects the majority sign of all entries where the task
    vectors cancel out.
    """

    param_value_mask_rate: float = parameter(
        0.8, doc="share of each task vector dropped, smallest first, in [0, 1]"
    )
    scaling_coefficient: float = parameter(1.0, doc="factor on the merged task vector")
    trim_scope: Scope = parameter(
        "tensor", doc="rank magnitudes within each weight (MergeLLM) or over the model (MergeLM)"
    )
    granularity = ELEMENT
    measured_by = ("param_value_mask_rate",)

    def __post_init__(self) -> None:
        check_share("param_value_mask_rate", (self.param_value_mask_rate,))

    def over(self, weights: Sequence[Weight]) -> _TrimmedTies:
        """Build the kernel with magnitudes ranked over all the given weights together."""
        n = sum(math.prod(weight.shape) for weight in weights)
        kept = n + 1 - max(1, int(n * self.param_value_mask_rate))
        each = cuts(weights, deltas, [[kept]] * weights[0].n_experts)
        threshold = torch.tensor([cut.threshold for (cut,) in each])
        trimmed = _TrimmedTies(self.scaling_coefficient, threshold, 0.0)
        majority = torch.stack([trimmed.signs(weight) for weight in weights]).sum().sign()
        return replace(trimmed, majority=float(majority))

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the threshold of each task vector, float32 [N], and the majority sign."""
        trimmed = self.over([weight])
        return {"threshold": trimmed.threshold, "majority": torch.tensor(trimmed.majority)}

    def prepare(self, sources: Sources) -> Kernel | None:
        """Rank magnitudes over the whole model for ``trim_scope: model``."""
        return self.over(list(sources.slots())) if self.trim_scope == "model" else None

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + scale * disjoint mean of trimmed task vectors: float32 [*shape]."""
        threshold, majority = slot.measured["threshold"], float(slot.measured["majority"])
        return _TrimmedTies(self.scaling_coefficient, threshold, majority)(slot)


@dataclass(frozen=True)
class BreadcrumbsMerging:
    """Drop the largest and smallest changes, add up the rest [Davari & Belilovsky 2024; MergeLLM].

    Like the repository's code, drops one entry less at the small end than param_value_mask_rate,
    and keeps entries equal to the last one kept at either end. An end whose share rounds to no
    entries drops none.
    """

    param_density: float = parameter(0.9, doc="share of each task vector kept, in [0, 1]")
    param_value_mask_rate: float = parameter(
        0.09,
        doc="share dropped as the smallest, at most 1 - param_density; the rest are largest",
    )
    scaling_coefficient: float = parameter(1.0, doc="factor on the sum of task vectors")
    granularity = ELEMENT
    measured_by = ("param_density", "param_value_mask_rate")

    def __post_init__(self) -> None:
        check_share("param_density", (self.param_density,))
        check_share("param_value_mask_rate", (self.param_value_mask_rate,))
        dropped = 1 - self.param_density
        if self.param_value_mask_rate > dropped + 1e-9:
            raise ParameterError(
                f"param_density {self.param_density:g} drops {dropped:g} of the weights, of which "
                f"param_value_mask_rate {self.param_value_mask_rate:g} cannot be the smallest; "
                f"set param_value_mask_rate to {dropped:g} or less"
            )

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cuts of the largest and the smallest entries of each task vector."""
        n = math.prod(weight.shape)
        n_small = int(n * self.param_value_mask_rate)
        n_large = max(0, int(n * (1 - self.param_density)) - n_small)
        some_left = n_large + 1 < n  # if so, entries equal to the largest one kept stay
        counts = [n_large + some_left, n + 1 - max(1, n_small)]
        measured = as_measured(cuts([weight], deltas, [counts] * weight.n_experts))
        (large, small), last = measured["threshold"].T, measured["last"][:, 0]
        return {
            "large": large,
            "last": torch.full_like(last, -1) if some_left else last,
            "small": small,
        }

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + scale * sum of the middle of each task vector: float32 [*shape]."""
        everything = torch.tensor(ALL)
        rows = zip(
            deltas(slot), *(slot.measured[key] for key in ("large", "last", "small")), strict=True
        )
        middles = (
            keep_largest(delta, slot, small, everything) - keep_largest(delta, slot, large, last)
            for delta, large, last, small in rows
        )
        return functools.reduce(Tensor.add_, middles).mul_(self.scaling_coefficient).add_(slot.base)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    for name, method, paper in (
        ("ties_merging", TiesMerging, "Yadav et al. 2023, arXiv:2306.01708"),
        ("breadcrumbs_merging", BreadcrumbsMerging, "Davari & Belilovsky 2024, arXiv:2312.06795"),
    ):
        register(name, method, needs_base=True, paper=paper)
