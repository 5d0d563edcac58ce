"""Karcher mean of any number of models: the centre of mass of their directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Region, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.arithmetic import dot_products, sums, weighted_sum
from merge_plugins.plugins import hookimpl

NO_DIRECTION = 1e-8
"""Norm up to which a weight, or a mean of directions, is zero."""


@dataclass(frozen=True)
class Karcher:
    """Riemannian centre of mass of the models' directions, times the mean of their lengths.

    The point of the sphere with the least sum of squared angles [Karcher 1977], by steps of its
    fixed point m <- exp_m(mean of log_m(u_i)) from the mean direction [Afsari 2011]. All of it
    stays in the span of the models, so their dot products are enough and the result is a weighted
    sum. Of models in 16 bits mergekit rounds the whole direction after each operation, which moves
    the result by up to half the distance between close models; so does this (``dtype: float32`` in
    the recipe: does not), holding one direction in 16 bits while it measures a weight.
    """

    max_iter: int = parameter(10, doc="most steps towards the mean, 0 or more")
    tol: float = parameter(1e-5, doc="length of a step, as an angle, that is not taken any more")
    granularity = ELEMENT

    def __post_init__(self) -> None:
        if self.max_iter < 0:
            raise ParameterError(f"max_iter is a number of steps, 0 or more; got {self.max_iter}")

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Return the factor on each model, float64 [N], or in 16 bits the path to the mean."""
        dots = dot_products(weight, lambda block: block.experts)
        norms = dots.diagonal().sqrt()
        directed = norms > NO_DIRECTION
        factors = torch.zeros_like(norms)
        if not directed.any():
            return {"factors": factors}
        unit = norms[directed]
        cosines = (dots[directed][:, directed] / (unit[:, None] * unit)).clamp(-1, 1)
        if weight.dtype.itemsize == 2 and float(cosines.mean()) > NO_DIRECTION:
            return self.path(weight, norms.float())
        factors[directed] = norms.mean() * self.mean(cosines) / unit
        return {"factors": factors}

    def mean(self, cosines: Tensor) -> Tensor:
        """Return the mean direction as factors on n directions: float64 [n].

        cosines: between the directions, [n, n]. Those that cancel out have no mean: the first.
        """

        def length(factors: Tensor) -> Tensor:
            return (factors @ cosines @ factors).clamp(min=0).sqrt()

        n = len(cosines)
        middle = torch.full((n,), 1 / n, dtype=cosines.dtype)
        if length(middle) < NO_DIRECTION:
            middle = torch.eye(n, dtype=cosines.dtype)[0]
        middle = middle / length(middle)
        for _ in range(self.max_iter):
            along = (cosines @ middle).clamp(-1, 1)
            angles = along.acos()
            stretch = torch.where(angles.sin() > 1e-7, angles / angles.sin(), (along > 0).double())
            tangent = (stretch - (stretch @ along) * middle) / n
            step = length(tangent)
            if step < self.tol:
                break
            middle = step.cos() * middle + step.sin() / step * tangent
            middle = middle / length(middle)
        return middle

    def path(self, weight: Weight, norms: Tensor) -> Mapping[str, Tensor]:
        """Return the numbers that lead to the mean in the inputs' dtype: see `_replayed`.

        Looks three times for each step.
        """
        held: dict[Region | None, Tensor] = {}
        cosines: list[Tensor] = []
        steps: list[Tensor] = []

        def begin(block: Slot) -> Sequence[Tensor]:
            held[block.region] = middle = _start(_units(block, norms))
            return [middle.float().square()]

        lengths = [sums(weight, begin)[0].sqrt().float()]

        def turn(block: Slot) -> Sequence[Tensor]:
            held[block.region] = middle = held[block.region] / float(lengths[-1])
            return [middle.float() * unit.float() for unit in _units(block, norms)]

        def pull(block: Slot) -> Sequence[Tensor]:
            tangent = _tangent(held[block.region], _units(block, norms), cosines[-1])
            return [tangent.float().square()]

        def move(block: Slot) -> Sequence[Tensor]:
            middle = held[block.region]
            tangent = _tangent(middle, _units(block, norms), cosines[-1])
            held[block.region] = middle = _moved(middle, tangent, float(steps[-1]))
            return [middle.float().square()]

        for _ in range(self.max_iter):
            cosines.append(sums(weight, turn).to(weight.dtype))
            steps.append(sums(weight, pull)[0].sqrt().float())
            if float(steps[-1]) < self.tol:
                steps.pop()
                break
            lengths.append(sums(weight, move)[0].sqrt().float())
        return {
            "norms": norms,
            "cosines": torch.stack(cosines[: len(steps)]) if steps else norms.new_empty(0),
            "steps": torch.tensor(steps),
            "lengths": torch.stack(lengths),
        }

    def __call__(self, slot: Slot) -> Tensor:
        """Return the mean: [*shape], float32 or in the inputs' dtype if that has 16 bits."""
        if "factors" in slot.measured:
            return weighted_sum(slot.experts, slot.measured["factors"].tolist())
        return _replayed(slot)


def _units(slot: Slot, norms: Tensor) -> list[Tensor]:
    """Return the directions of the models that have one, in one dtype."""
    dtype = slot.dtype
    pairs = zip(slot.experts, norms.tolist(), strict=True)
    return [expert.to(dtype) / norm for expert, norm in pairs if norm > NO_DIRECTION]


def _start(units: Sequence[Tensor]) -> Tensor:
    """Return the mean of the directions, rounded after each operation."""
    first, *others = (unit * (1 / len(units)) for unit in units)
    for other in others:
        first = first + other
    return first


def _tangent(middle: Tensor, units: Sequence[Tensor], cosines: Tensor) -> Tensor:
    """Return the mean of log_m(u), rounded after each operation."""
    total = torch.zeros_like(middle)
    for unit, cosine in zip(units, cosines.clamp(-1, 1), strict=True):
        angle = cosine.acos()
        if angle > 0:
            stretch = 1 / len(units) * (angle / angle.sin())
            total = total + stretch * (unit - cosine * middle)
    return total


def _moved(middle: Tensor, tangent: Tensor, step: float) -> Tensor:
    """Return exp_m(T), not yet of length 1, rounded after each operation."""
    cosine, sine = torch.tensor([math.cos(step), math.sin(step)], dtype=middle.dtype)
    return torch.mul(middle, cosine).add_(torch.div(tangent, step).mul_(sine))


def _replayed(slot: Slot) -> Tensor:
    """Return the mean that a path leads to, in the inputs' dtype."""
    norms, cosines, steps, lengths = (
        slot.measured[key] for key in ("norms", "cosines", "steps", "lengths")
    )
    units = _units(slot, norms)
    first, *others = lengths.tolist()
    middle = _start(units) / first
    for at, (step, length) in enumerate(zip(steps.tolist(), others, strict=True)):
        middle = _moved(middle, _tangent(middle, units, cosines[at]), step) / length
    return torch.mul(middle, norms.mean().to(middle.dtype))


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the family."""
    paper = "Karcher 1977; Afsari 2011; mergekit 0.1.5"
    register("karcher", Karcher, merges_base=True, paper=paper)
