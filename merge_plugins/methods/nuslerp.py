"""Spherical interpolation of two models or two task vectors: whole, row by row, column by column.

Numbers are mergekit's, including where it rounds to the inputs' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, ROW, Granularity, PerExpert, Slot, Weight, parameter
from merge_plugins.ops.arithmetic import dot_products, least, sums_over, vectors
from merge_plugins.plugins import hookimpl

SHORTEST = 1e-12
"""A vector no longer than this has no direction: it counts as perpendicular to the other."""
PARALLEL = 1e-6
"""Sine below which an arc is a straight line. In float32 the next cosine to 1 has 3e-4."""


def units(ends: Sequence[Tensor], norms: Tensor) -> list[Tensor]:
    """Return vectors of length 1; ``norms``: one number, or one per row or column, for each."""
    dtype = ends[0].dtype
    pairs = zip(ends, norms.to(ends[0]).clamp(min=least(SHORTEST, dtype)), strict=True)
    return [end / norm for end, norm in pairs]


@dataclass(frozen=True, kw_only=True)
class NuSlerp:
    """Spherical interpolation of two models, or with a base of their task vectors [mergekit].

    Slerp [Shoemake 1985] at t = w_2 / (w_1 + w_2), halfway where the weights cancel. Vectors keep
    their lengths; parallel ones are interpolated in a straight line.
    """

    weight: PerExpert = parameter(doc="pull of each model; only their ratio matters")
    nuslerp_flatten: bool = parameter(True, doc="take each weight as one long vector")
    nuslerp_row_wise: bool = parameter(
        False,
        doc="with nuslerp_flatten: false, vectors run along the first dimension, not the last",
    )

    @property
    def granularity(self) -> Granularity:
        """Rows where vectors are rows or columns: columns are measured before."""
        return ELEMENT if self.nuslerp_flatten else ROW

    @property
    def t(self) -> float:
        """Position between the first model (0) and the second (1)."""
        first, second = self.weight
        return second / (first + second) if abs(first + second) >= 1e-6 else 0.5

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Return the cosine between the vectors that are longer than a row, in the inputs' dtype.

        A number, or for columns [*shape[1:]]. Looks twice: directions are rounded, as mergekit has
        it, before they are compared.
        """
        if not self.nuslerp_flatten and (not self.nuslerp_row_wise or len(weight.shape) < 2):
            return {}
        dtype = weight.dtype
        if self.nuslerp_flatten:
            norms = dot_products(weight, vectors).diagonal().sqrt().to(dtype)
            dots = dot_products(weight, lambda block: units(vectors(block), norms), dtype)
            return {"cosine": dots[0, 1].to(dtype)}
        squares = sums_over(weight, 0, lambda block: (v.float().square() for v in vectors(block)))
        norms = squares.sqrt().to(dtype)

        def product(block: Slot) -> Sequence[Tensor]:
            region = block.box
            columns = (slice(None), *(slice(*bounds) for bounds in region.bounds[1:]))
            first, second = units(vectors(block), norms[columns])
            return [(first * second).float()]

        return {"cosine": sums_over(weight, 0, product)[0].to(dtype)}

    def cosine(self, slot: Slot, ends: Sequence[Tensor]) -> Tensor:
        """Return the cosine that holds for each element: a number, or one for rows or columns."""
        if "cosine" not in slot.measured:
            norms = torch.stack([end.float().norm(dim=-1, keepdim=True) for end in ends])
            first, second = units(ends, norms)
            return (first * second).sum(-1, keepdim=True)
        cosine = slot.measured["cosine"].to(ends[0].device)
        if cosine.ndim and slot.region is not None:
            return cosine[tuple(slice(*bounds) for bounds in slot.region.bounds[1:])]
        return cosine

    def __call__(self, slot: Slot) -> Tensor:
        """Return the interpolation, on the base if there is one: [*shape] in the inputs' dtype."""
        first, second = ends = vectors(slot)
        angle = self.cosine(slot, ends).clamp(-1, 1).acos()
        between = interpolated(first, second, angle, self.t).view(slot.shape)
        return between if slot.maybe_base is None else slot.base + between


def interpolated(first: Tensor, second: Tensor, angle: Tensor, t: float) -> Tensor:
    """Return slerp, or lerp where the angle, which is broadcast, is 0 or 180 degrees."""
    sine = angle.sin()
    parallel = sine.abs() < PARALLEL
    if parallel.all():
        return (1 - t) * first + t * second
    arc = (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / sine
    return torch.where(parallel, (1 - t) * first + t * second, arc) if parallel.any() else arc


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the family."""
    register(
        "nuslerp",
        NuSlerp,
        takes_base=True,
        min_experts=2,
        max_experts=2,
        paper="Shoemake 1985; mergekit 0.1.5",
    )
