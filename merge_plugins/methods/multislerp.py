"""Weighted spherical mean of any number of models: of directions, times the mean length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, PerExpert, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.arithmetic import added, least, sums, vector_norms, vectors
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
        dtype = vectors[0].dtype
        pairs = zip(vectors, self.shares(dtype), strict=True)
        terms = [vector * share for vector, share in pairs]
        if len(terms) == 2 and all(term.dtype.itemsize == 2 for term in terms):
            return (terms[0] + terms[1]).to(dtype)  # sums in float32 too, in half the time
        return added(terms).to(dtype)

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the norms [N], the mean's length [] and the directions' cosines with it [N].

        In the inputs' dtype. Reads the weight three times, because mergekit rounds whole vectors
        between these steps.
        """
        if len(self.weight) == 1:
            return {}
        dtype = weight.dtype
        norms = vector_norms(weight, vectors, dtype)

        def mean(block: Slot) -> Sequence[Tensor]:
            return [self.weighed(self.directions(block, norms)).float().square()]

        length = sums(weight, mean)[0].sqrt().to(dtype).clamp(min=least(SHORTEST, dtype))

        def products(block: Slot) -> Sequence[Tensor]:
            directions = self.directions(block, norms)
            middle = self.weighed(directions).div_(length)
            return [(direction * middle).float() for direction in directions]

        return {"norms": norms, "length": length, "cosines": sums(weight, products).to(dtype)}

    def __call__(self, slot: Slot) -> Tensor:
        """Return the mean, plus the base if there is one: [*shape] in the inputs' dtype."""
        if len(self.weight) == 1:
            return slot.experts[0].clone()
        norms, length, cosines = (slot.measured[k] for k in ("norms", "length", "cosines"))
        directions = self.directions(slot, norms)
        middle = self.weighed(directions).div_(length)
        tangents = [u - cosine * middle for u, cosine in zip(directions, cosines, strict=True)]
        mean = middle.add_(self.weighed(tangents)).mul_(self.weighed(list(norms)))
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
