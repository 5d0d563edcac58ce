"""Merge methods as the research repositories define them, with their names and parameters.

MergeLLM (WIDEN) and MergeLM (DARE) compute in float32 whatever the models are stored in, and so do
these. Where a repository's code would crash, the plain reading of its paper is used instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from merge_plugins.api import Kernel, Measures, PerExpert, Slot, Sources, parameter
from merge_plugins.arithmetic import drop_at_random, elected, keep_largest
from merge_plugins.hookspecs import hookimpl
from merge_plugins.methods.averages import Average
from merge_plugins.methods.spherical import SlerpMerging
from merge_plugins.methods.task_vectors import TaskArithmetic, check_share
from merge_plugins.selection import ALL, as_measured, cuts

Scope = Literal["tensor", "model"]


def deltas(slot: Slot) -> Sequence[Tensor]:
    """Return task vectors, not rounded: N of float32 [*shape]."""
    return slot.deltas().unbind()


@dataclass(frozen=True)
class _TrimmedTies:
    """TIES once it is known where to trim and which sign most entries have."""

    scaling_coefficient: float
    threshold: Tensor  # float32 [N]
    majority: float  # +1, -1 or 0

    def trim(self, slot: Slot) -> list[Tensor]:
        """Zero what lies below the threshold; ties with it stay."""
        everything = torch.tensor(ALL)
        rows = zip(deltas(slot), self.threshold, strict=True)
        return [keep_largest(delta, slot, threshold, everything) for delta, threshold in rows]

    def signs(self, slot: Slot) -> Tensor:
        """Sum of the elected signs over every entry of a whole weight: a scalar."""

        def of(block: Slot) -> Tensor:
            return torch.stack(self.trim(block)).sum(0).sign().sum(dtype=torch.float64)

        return torch.stack(slot.map_blocks(of)).sum()

    def __call__(self, slot: Slot) -> Tensor:
        trimmed = self.trim(slot)
        total, count = elected(trimmed, (1.0,) * len(trimmed), self.majority)
        return total.div_(count).mul_(self.scaling_coefficient).add_(slot.base)


@dataclass(frozen=True)
class TiesMerging:
    """Trim small changes, elect signs, average what agrees [Yadav et al. 2023; MergeLLM, MergeLM].

    Drops one entry less than the share asked for, keeps ties, and gives entries that cancel out
    the sign most entries have: what both repositories' code does.
    """

    param_value_mask_rate: float = parameter(
        0.8, doc="share of each task vector dropped, smallest first, in [0, 1]"
    )
    scaling_coefficient: float = parameter(1.0, doc="factor on the merged task vector")
    trim_scope: Scope = parameter(
        "tensor", doc="rank magnitudes within each weight (MergeLLM) or the whole model (MergeLM)"
    )

    def __post_init__(self) -> None:
        check_share("param_value_mask_rate", (self.param_value_mask_rate,))

    def over(self, slots: Sequence[Slot]) -> _TrimmedTies:
        """The kernel that ranks magnitudes over all of these weights."""
        n = sum(math.prod(slot.shape) for slot in slots)
        kept = n + 1 - max(1, int(n * self.param_value_mask_rate))
        found = cuts(slots, deltas, [[kept]] * len(slots[0].experts))
        threshold = torch.tensor([cut.threshold for (cut,) in found])
        trimmed = _TrimmedTies(self.scaling_coefficient, threshold, 0.0)
        majority = torch.stack([trimmed.signs(slot) for slot in slots]).sum().sign()
        return replace(trimmed, majority=float(majority))

    def measure(self, slot: Slot) -> Mapping[str, Tensor]:
        """Return where to trim each task vector of this weight, and the majority sign."""
        trimmed = self.over([slot])
        return {"threshold": trimmed.threshold, "majority": torch.tensor(trimmed.majority)}

    def prepare(self, sources: Sources) -> Kernel | None:
        """Rank magnitudes over the whole model when ``trim_scope`` says so."""
        return self.over(list(sources.slots())) if self.trim_scope == "model" else None

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + scale * disjoint mean of trimmed task vectors: float32 [*shape]."""
        threshold, majority = slot.measured["threshold"], float(slot.measured["majority"])
        return _TrimmedTies(self.scaling_coefficient, threshold, majority)(slot)


@dataclass(frozen=True)
class MaskMerging:
    """Mask each model's change (DARE, DropOnly, pruning), then merge [Yu et al. 2024]."""

    weight_mask_rate: PerExpert = parameter(
        0.1, doc="share of each model's change dropped, in [0, 1]"
    )
    use_weight_rescale: bool = parameter(
        False, doc="divide what is kept by 1 - weight_mask_rate: random with this is DARE"
    )
    mask_strategy: Literal["random", "magnitude"] = parameter(
        "random", doc="which entries are dropped: any, or the smallest"
    )
    weight_format: Literal["delta_weight", "finetuned_weight"] = parameter(
        "delta_weight", doc="mask the change from the base, or the fine-tuned weights themselves"
    )
    mask_apply_method: Literal[
        "average_merging", "task_arithmetic", "slerp_merging", "ties_merging"
    ] = parameter("average_merging", doc="how the masked models are merged")
    scaling_coefficient: float = parameter(
        1.0, doc="task_arithmetic, ties_merging: factor on the merged task vector"
    )
    slerp_t: float = parameter(0.5, doc="slerp_merging: position between both models")
    dot_threshold: float = parameter(0.9995, doc="slerp_merging: cosine beyond which lerp is used")
    param_value_mask_rate: float = parameter(0.8, doc="ties_merging: share trimmed, in [0, 1]")
    trim_scope: Scope = parameter("tensor", doc="ties_merging: rank within a weight or the model")

    def __post_init__(self) -> None:
        check_share("weight_mask_rate", self.weight_mask_rate)
        _ = self.inner  # its own checks

    @property
    def inner(self) -> Kernel:
        """The method that merges the masked models."""
        scale = self.scaling_coefficient
        if self.mask_apply_method == "task_arithmetic":
            n = len(self.weight_mask_rate)
            return TaskArithmetic(weight=(1.0,) * n, lambda_=scale)
        if self.mask_apply_method == "slerp_merging":
            return SlerpMerging(self.slerp_t, self.dot_threshold)
        if self.mask_apply_method == "ties_merging":
            return TiesMerging(self.param_value_mask_rate, scale, self.trim_scope)
        return Average()

    def measure(self, slot: Slot) -> Mapping[str, Tensor]:
        """Return where magnitudes are cut, and what the inner method measures after masking."""
        return _Masked(self, self.inner).measure(slot)

    def prepare(self, sources: Sources) -> Kernel | None:
        """Prepare the inner method on the masked models, if it looks at the whole model."""
        if self.mask_apply_method != "ties_merging" or self.trim_scope != "model":
            return None
        slots = [_seen_masked(slot, self, self.cuts(slot)) for slot in sources.slots()]
        inner = TiesMerging(self.param_value_mask_rate, self.scaling_coefficient)
        return _Masked(self, inner.over(slots))

    def __call__(self, slot: Slot) -> Tensor:
        """Return the inner method's merge of the masked models: float32 [*shape]."""
        return _Masked(self, self.inner)(slot)

    def vectors(self, slot: Slot) -> list[Tensor]:
        """What is masked: task vectors or the weights themselves, N of float32 [*shape]."""
        if self.weight_format == "delta_weight":
            return list(deltas(slot))
        return [expert.float().clone() for expert in slot.experts]

    def cuts(self, slot: Slot) -> Mapping[str, Tensor]:
        """Return where each model's magnitudes are cut; nothing to know for random masks."""
        if self.mask_strategy == "random":
            return {}
        n = math.prod(slot.shape)
        dropped = [int(n * rate) for rate in self.weight_mask_rate]
        found = cuts([slot], self.vectors, [[n + 1 - k if k else n] for k in dropped])
        measured = as_measured(found)
        nothing_dropped = torch.tensor([[k == 0] for k in dropped])
        last = torch.where(nothing_dropped, ALL, -1)  # entries equal to the k-th smallest go
        return {"mask_threshold": measured["threshold"], "mask_last": last}

    def masked(self, slot: Slot) -> Slot:
        """The slot with every model masked; experts become float32."""
        vectors = self.vectors(slot)
        experts = []
        for i, (vector, rate) in enumerate(zip(vectors, self.weight_mask_rate, strict=True)):
            if self.mask_strategy == "random":
                kept = drop_at_random(vector, slot, i, 1 - rate)
            else:
                cut = slot.measured["mask_threshold"][i, 0], slot.measured["mask_last"][i, 0]
                kept = keep_largest(vector, slot, *cut)
            if self.use_weight_rescale and rate < 1:
                kept = kept / (1 - rate)
            experts.append(kept + slot.base if self.weight_format == "delta_weight" else kept)
        return replace(slot, experts=tuple(experts), through=None)


@dataclass(frozen=True)
class _Masked:
    """A mask followed by a merge of what it left."""

    mask: MaskMerging
    inner: Kernel

    def measure(self, slot: Slot) -> Mapping[str, Tensor]:
        measured = dict(self.mask.cuts(slot))
        if isinstance(self.inner, Measures):
            measured.update(self.inner.measure(_seen_masked(slot, self.mask, measured)))
        return measured

    def __call__(self, slot: Slot) -> Tensor:
        return self.inner(self.mask.masked(slot))


def _seen_masked(slot: Slot, mask: MaskMerging, measured: Mapping[str, Tensor]) -> Slot:
    def through(part: Slot) -> Slot:
        return mask.masked(replace(part, measured=measured))

    return replace(slot, through=through)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the family."""
    ties, dare = "Yadav et al. 2023, arXiv:2306.01708", "Yu et al. 2024, arXiv:2311.03099"
    register("ties_merging", TiesMerging, elementwise=True, needs_base=True, paper=ties)
    register("mask_merging", MaskMerging, elementwise=True, needs_base=True, paper=dare)
