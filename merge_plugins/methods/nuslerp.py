"""Spherical interpolation of two models or two task vectors: whole, row by row, column by column.

Numbers are mergekit's, including where it rounds to the inputs' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, ROW, Granularity, PerExpert, Slot, Weight, parameter
from merge_plugins.ops.arithmetic import dot_products, least, sums_over, vector_norms, vectors
from merge_plugins.plugins import hookimpl

SHORTEST = 1e-12
"""Length up to which a vector counts as zero, and as perpendicular to the other."""
PARALLEL = 1e-6
"""Sine below which an arc counts as straight; in float32 the smallest above 0 is about 3e-4."""


def units(ends: Sequence[Tensor], norms: Tensor) -> list[Tensor]:
    """Divide vectors by ``norms``, each one number or one per row or column: 2 of [*shape]."""
    dtype = ends[0].dtype
    pairs = zip(ends, norms.to(ends[0]).clamp(min=least(SHORTEST, dtype)), strict=True)
    return [end / norm for end, norm in pairs]


@dataclass(frozen=True, kw_only=True)
class NuSlerp:
    """Spherical interpolation of two models, or with a base of their task vectors [mergekit].

    Slerp [Shoemake 1985] at t = w_2 / (w_1 + w_2), halfway where the weights cancel. Vectors keep
    their lengths; parallel ones are interpolated in a straight line.
    """

    weight: PerExpert = parameter(doc="weight of each model; only their ratio matters")
    nuslerp_flatten: bool = parameter(True, doc="treat each weight as one long vector")
    nuslerp_row_wise: bool = parameter(
        False,
        doc="with nuslerp_flatten: false, vectors run along the first dimension, not the last",
    )

    measured_by = ("nuslerp_flatten", "nuslerp_row_wise")
    shows_damage = True

    @property
    def granularity(self) -> Granularity:
        """ROW if vectors are rows, or columns, whose cosines are measured first; else ELEMENT."""
        return ELEMENT if self.nuslerp_flatten else ROW

    @property
    def t(self) -> float:
        """Position between the first model (0) and the second (1)."""
        first, second = self.weight
        return second / (first + second) if abs(first + second) >= 1e-6 else 0.5

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cosine between whole weights [] or columns [*shape[1:]]; empty for rows.

        In the inputs' dtype. Reads the weight twice, because directions are rounded, as in
        mergekit, before they are multiplied.
        """
        if not self.nuslerp_flatten and (not self.nuslerp_row_wise or len(weight.shape) < 2):
            return {}
        dtype = weight.dtype
        if self.nuslerp_flatten:
            norms = vector_norms(weight, vectors, dtype)
            between = dot_products(
                weight, lambda block: units(vectors(block), norms), dtype, squares=False
            )
            return {"cosine": between[0, 1].to(dtype)}
        squares = sums_over(weight, 0, lambda block: (v.float().square() for v in vectors(block)))
        norms = squares.sqrt().to(dtype)

        def product(block: Slot) -> Sequence[Tensor]:
            region = block.box
            columns = (slice(None), *(slice(*bounds) for bounds in region.bounds[1:]))
            first, second = units(vectors(block), norms[columns])
            return [(first * second).float()]

        return {"cosine": sums_over(weight, 0, product)[0].to(dtype)}

    def cosine(self, slot: Slot, ends: Sequence[Tensor]) -> Tensor:
        """Return the measured cosine of a block, or compute those of its rows: broadcasts to it."""
        if "cosine" not in slot.measured:
            norms = torch.stack([end.float().norm(dim=-1, keepdim=True) for end in ends])
            first, second = units(ends, norms)
            return (first * second).sum(-1, keepdim=True)
        cosine = slot.measured["cosine"].to(ends[0].device)
        if cosine.ndim and slot.region is not None:
            return cosine[tuple(slice(*bounds) for bounds in slot.region.bounds[1:])]
        return cosine

    def __call__(self, slot: Slot) -> Tensor:
        """Return the interpolation, plus the base if there is one: [*shape], the inputs' dtype."""
        first, second = ends = vectors(slot)
        angle = self.cosine(slot, ends).clamp(-1, 1).acos()
        between = interpolated(first, second, angle, self.t).view(slot.shape)
        return between if slot.maybe_base is None else slot.base + between


def interpolated(first: Tensor, second: Tensor, angle: Tensor, t: float) -> Tensor:
    """Interpolate by slerp, by lerp where ``angle`` (broadcast, radians) is 0 or pi: [*shape]."""
    sine = angle.sin()
    parallel = sine.abs() < PARALLEL
    if parallel.all():
        return (1 - t) * first + t * second
    arc = ((1 - t) * angle).sin() * first
    arc.add_((t * angle).sin() * second).div_(sine)
    return torch.where(parallel, (1 - t) * first + t * second, arc) if parallel.any() else arc


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    register(
        "nuslerp",
        NuSlerp,
        takes_base=True,
        min_experts=2,
        max_experts=2,
        paper="Shoemake 1985; mergekit 0.1.5",
    )
