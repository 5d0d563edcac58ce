"""Take entries of another model: the close ones (NearSwap) or the important (Arcee Fusion)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.selection import order_statistics
from merge_plugins.plugins import hookimpl

CLOSEST = 1e-6
"""Distance below which two entries count as equal."""
POSITIVE = 1e-8
"""Constant added to probabilities, so that none is divided by 0."""


@dataclass(frozen=True, kw_only=True)
class NearSwap:
    """Base, with entries of the other model where the two are closer than t [alchemonaut 2024].

    The other model's share is t / |x - b|, at most 1, so it falls with the distance. Numbers are
    mergekit's, including where it rounds to the inputs' dtype.
    """

    t: float = parameter(doc="distance up to which entries are swapped, 0 or more")
    granularity = ELEMENT
    shows_damage = True

    def __post_init__(self) -> None:
        if self.t < 0:
            raise ParameterError(f"t is a distance between weights, 0 or more; got {self.t:g}")

    def __call__(self, slot: Slot) -> Tensor:
        """Return share * x + (1 - share) * base: [*shape] in the inputs' dtype."""
        (other,) = slot.experts
        share = (self.t / (slot.base - other).abs_().clamp_(min=CLOSEST)).clamp_(max=1)
        return share * other + (1 - share) * slot.base


@dataclass(frozen=True)
class ArceeFusion:
    """Base plus the changes that matter much more than most [Arcee 2024, Arcee Fusion].

    The importance of a change is its magnitude times the divergence KL(softmax(x) | softmax(b)) of
    its row; changes from median + 1.5 * interquartile range on are kept. Numbers are mergekit's,
    including where it rounds to the inputs' dtype, except that mergekit ranks a random sample of
    weights with more than a million entries, and this ranks all.
    """

    granularity = ELEMENT

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute each row's divergence [*shape[:-1]] and the threshold, in the inputs' dtype."""
        rows = weight.map_blocks(self.divergence, weight.blocks(whole_rows=True))
        divergence = torch.cat([row.reshape(-1) for row in rows]).view(weight.shape[:-1])
        n = math.prod(weight.shape)
        if not n:
            return {"divergence": divergence, "threshold": torch.zeros(())}
        first, median, third = order_statistics(
            weight,
            lambda block: self.importance(block, divergence),
            [int(share * (n - 1)) for share in (0.25, 0.5, 0.75)],
        )
        return {"divergence": divergence, "threshold": median + 1.5 * (third - first)}

    def divergence(self, rows: Slot) -> Tensor:
        """Compute KL(softmax(x) | softmax(b)) of each whole row: [*shape[:-1]]."""
        dtype = rows.dtype
        p, q = (x.to(dtype).softmax(-1) for x in (*rows.experts, rows.base))
        return (p * ((p + POSITIVE) / (q + POSITIVE)).log()).sum(-1)

    def importance(self, slot: Slot, divergence: Tensor) -> Tensor:
        """Compute the importance of each change: [*shape]; negative where bfloat16 rounds so."""
        (other,) = slot.experts
        return (other - slot.base).abs_() * slot.of_rows(divergence)

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + the important changes: float32 [*shape]."""
        (other,) = slot.experts
        important = self.importance(slot, slot.measured["divergence"]) >= slot.measured["threshold"]
        return slot.base.float() + (other - slot.base).float() * important


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    facts = {"needs_base": True, "max_experts": 1}
    register("nearswap", NearSwap, paper="alchemonaut 2024, QuartetAnemoi-70B", **facts)
    register("arcee_fusion", ArceeFusion, paper="Arcee 2024, Arcee Fusion", **facts)
