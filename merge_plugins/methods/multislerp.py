"""Weighted spherical mean of any number of models: of directions, times the mean length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, PerExpert, Region, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.arithmetic import least, rounded_sum, sums, vector_norms, vectors
from merge_plugins.plugins import hookimpl

SHORTEST = 1e-12
"""Length up to which a mean of directions counts as zero: the directions cancel out."""


@dataclass(frozen=True, kw_only=True)
class MultiSlerp:
    """Weighted spherical mean of any number of models, or with a base of their task vectors.

    Takes one step in the tangent plane at the mean direction m = sum(w u) / |sum(w u)| [Buss &
    Fillmore 2001]: the tangent T = sum w (u - <u, m> m) is zero but for rounding, so the step leads
    to m + T. This is multiplied by the weighted mean of the lengths. A single model is unchanged.
    """

    weight: PerExpert = parameter(doc="weight of each model")
    normalize_weights: bool = parameter(True, doc="divide by the sum of the weights")
    eps: float = parameter(1e-8, doc="added to lengths before dividing by them, 0 or more")
    granularity = ELEMENT

    def __post_init__(self) -> None:
        if self.eps < 0:
            raise ParameterError(f"eps is added to a length, 0 or more; got {self.eps:g}")
        if self.normalize_weights and abs(sum(self.weight)) < 1e-8:
            raise ParameterError(
                f"the weights {list(self.weight)} sum to zero, so their average is undefined; "
                "change a weight or set normalize_weights: false"
            )

    @property
    def shows_damage(self) -> bool:
        """Whether all inputs are used: a single model is, without its base."""
        return len(self.weight) > 1

    def shares(self, dtype: torch.dtype) -> list[float]:
        """Round the weights to a dtype, after dividing by their sum for ``normalize_weights``."""
        weight = torch.tensor(self.weight, dtype=dtype, device="cpu")
        return (weight / weight.sum() if self.normalize_weights else weight).tolist()

    def directions(self, slot: Slot, norms: Tensor) -> list[Tensor]:
        """Divide each vector by its length: N of [*shape]."""
        lengths = (norms + self.eps).clamp(min=least(0, norms.dtype))
        pairs = zip(vectors(slot), lengths, strict=True)
        return [v / length if slot.maybe_base is None else v.div_(length) for v, length in pairs]

    def weighed(self, vectors: Sequence[Tensor]) -> Tensor:
        """Compute the weighted sum, rounding after each product and at the end: [*shape]."""
        pairs = zip(vectors, self.shares(vectors[0].dtype), strict=True)
        return rounded_sum([vector * share for vector, share in pairs])

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the norms [N], the mean's length [] and the directions' cosines with it [N].

        In the inputs' dtype. Reads the weight three times, because mergekit rounds whole vectors
        between these steps. If there is room, directions are kept and the ``mean`` results.
        """
        if len(self.weight) == 1:
            return {}
        dtype = weight.dtype
        norms = vector_norms(weight, vectors, dtype)
        kept: dict[Region, tuple[list[Tensor], Tensor]] = {}

        def mean(block: Slot) -> Sequence[Tensor]:
            directions, middle = self.ahead(block, norms)
            if weight.has_room:
                kept[block.box] = directions, middle
            return [middle.float().square()]

        length = sums(weight, mean)[0].sqrt().to(dtype).clamp(min=least(SHORTEST, dtype))

        def products(block: Slot) -> Sequence[Tensor]:
            directions, middle = kept.get(block.box) or self.ahead(block, norms)
            middle.div_(length)
            return [(direction * middle).float() for direction in directions]

        cosines = sums(weight, products).to(dtype)
        if not weight.has_room:
            return {"norms": norms, "length": length, "cosines": cosines}
        merged = weight.empty(dtype)

        def finish(block: Slot) -> None:
            block.box.of(merged).copy_(self.step(*kept.pop(block.box), cosines, norms))

        weight.map_blocks(finish)
        return {"mean": merged}

    def ahead(self, slot: Slot, norms: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute the directions, N of [*shape], and their mean: [*shape]."""
        directions = self.directions(slot, norms)
        return directions, self.weighed(directions)

    def step(
        self, directions: Sequence[Tensor], middle: Tensor, cosines: Tensor, norms: Tensor
    ) -> Tensor:
        """Step from the mean direction along the tangent, and lengthen: [*shape], overwrites."""
        pairs = zip(directions, cosines, strict=True)
        tangents = [u.sub_(cosine * middle) for u, cosine in pairs]
        return middle.add_(self.weighed(tangents)).mul_(self.weighed(list(norms)))

    def __call__(self, slot: Slot) -> Tensor:
        """Return the mean, plus the base if there is one: [*shape] in the inputs' dtype."""
        if len(self.weight) == 1:
            return slot.experts[0].clone()
        if "mean" in slot.measured:
            mean = slot.box.of(slot.measured["mean"])
            return mean.clone() if slot.maybe_base is None else slot.base + mean
        norms, length, cosines = (slot.measured[k] for k in ("norms", "length", "cosines"))
        directions, middle = self.ahead(slot, norms)
        mean = self.step(directions, middle.div_(length), cosines, norms)
        return mean if slot.maybe_base is None else slot.base + mean


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    register(
        "multislerp",
        MultiSlerp,
        takes_base=True,
        paper="Buss & Fillmore 2001, Spherical averages; mergekit 0.1.5",
    )
