"""Interpolate along the great circle between two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.arithmetic import dot_products, weighted_sum
from merge_plugins.plugins import hookimpl


def cosine(dots: Tensor, shortest: float) -> Tensor:
    """Compute the cosine between two vectors from their dot products, float64 [2, 2].

    A vector no longer than ``shortest`` is not divided by its norm.
    """
    norms = dots.diagonal().sqrt()
    norms = torch.where(norms > shortest, norms, torch.ones_like(norms))
    return (dots[0, 1] / norms.prod()).clamp(-1, 1)


def between(first: Tensor, second: Tensor, cosine: Tensor, t: float, collinear: float) -> Tensor:
    """Interpolate by slerp [Shoemake 1985], or by lerp if abs(cosine) is above ``collinear``."""
    if abs(float(cosine)) > collinear:
        return weighted_sum((first, second), (1 - t, t))
    angle = math.acos(float(cosine))
    shares = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return weighted_sum((first, second), shares)


@dataclass(frozen=True, kw_only=True)
class Slerp:
    """Spherical interpolation from the base model (t = 0) to the other one (t = 1)."""

    t: float = parameter(doc="position between base (0) and the other model (1)")
    granularity = ELEMENT
    shows_damage = True
    measured_by = ()

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cosine between the two whole weights: float64 []."""
        return {"cosine": cosine(dot_products(weight, lambda s: (s.base, *s.experts)), 1e-8)}

    def __call__(self, slot: Slot) -> Tensor:
        """Return the interpolation: float32 [*shape]."""
        (other,) = slot.experts
        return between(slot.base, other, slot.measured["cosine"], self.t, 0.9995)


@dataclass(frozen=True)
class SlerpMerging:
    """Spherical interpolation from the first model to the second [WIDEN: slerp_merging]."""

    slerp_t: float = parameter(0.5, doc="position between the first model (0) and the second (1)")
    dot_threshold: float = parameter(0.9995, doc="cosine beyond which lerp is used, in (0, 1]")
    granularity = ELEMENT
    shows_damage = True
    measured_by = ()

    def __post_init__(self) -> None:
        if not 0 < self.dot_threshold <= 1:
            raise ParameterError(f"dot_threshold is a cosine, in (0, 1]; got {self.dot_threshold}")

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cosine between the two whole weights: float64 []."""
        return {"cosine": cosine(dot_products(weight, lambda s: s.experts), 1e-10)}

    def __call__(self, slot: Slot) -> Tensor:
        """Return the interpolation: float32 [*shape]."""
        first, second = slot.experts
        cosine = slot.measured["cosine"]
        return between(first, second, cosine, self.slerp_t, self.dot_threshold)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    paper = "Shoemake 1985"
    register("slerp", Slerp, needs_base=True, max_experts=1, paper=paper)
    register("slerp_merging", SlerpMerging, min_experts=2, max_experts=2, paper=paper)
