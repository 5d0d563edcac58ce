"""Karcher mean: the Riemannian centre of mass of the models' directions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Region, Slot, Weight, parameter
from merge_plugins.errors import MergeWarning, ParameterError
from merge_plugins.ops.arithmetic import block_sums, dot_products, sums, weighted_sum
from merge_plugins.plugins import hookimpl

Blocks: TypeAlias = dict[Region, Tensor]
NO_DIRECTION = 1e-8
"""Norm up to which a weight, or a mean of directions, counts as zero."""


@dataclass(frozen=True)
class Karcher:
    """Riemannian centre of mass of the models' directions, times the mean of their lengths.

    Finds the point of the sphere with the least sum of squared angles [Karcher 1977] by the fixed
    point iteration m <- exp_m(mean of log_m(u_i)) from the mean direction [Afsari 2011]. Every
    iterate lies in the span of the models, so their dot products suffice and the result is a
    weighted sum. For models in 16 bits mergekit rounds the direction after each operation, which
    moves the result by up to half the distance between close models. This does the same, keeping
    one direction in 16 bits while it measures a weight; ``dtype: float32`` in the recipe avoids it.
    """

    max_iter: int = parameter(10, doc="largest number of steps towards the mean, 0 or more")
    tol: float = parameter(1e-5, doc="steps shorter than this angle, in radians, end the search")
    granularity = ELEMENT

    def __post_init__(self) -> None:
        if self.max_iter < 0:
            raise ParameterError(f"max_iter is a number of steps, 0 or more; got {self.max_iter}")

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the factor on each model, float64 [N]; for 16 bits the iteration: see `path`."""
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
        """Compute the mean direction as factors on n directions: float64 [n].

        ``cosines``: between the directions, [n, n]. If the directions cancel out, the search starts
        from the first.
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
        """Compute the iteration in the inputs' dtype.

        If there is room for the directions, they are kept meanwhile, and the ``mean`` results: the
        merge. Else scalars do, from which `_replayed` repeats it: norms [N], cosines [steps, N],
        steps [steps] and lengths [steps + 1], and the weight is read three times for each step.
        Ends where a step changes no bit, since all later ones would change none.
        """
        self._warn_of_tol(weight.dtype)
        is_one_block = len(weight.blocks()) == 1
        if not (is_one_block or weight.has_room):
            return self._steps(lambda terms: sums(weight, terms), norms, weight.dtype, {})
        held: Blocks = {}
        mean = weight.empty(weight.dtype)

        def alone(block: Slot) -> None:
            self._steps(lambda terms: block_sums(terms(block)), norms, weight.dtype, held, {})

        def finish(block: Slot) -> None:
            block.box.of(mean).copy_(held.pop(block.box)).mul_(norms.mean().to(weight.dtype))

        if is_one_block:
            weight.map_blocks(alone)
        else:
            self._steps(lambda terms: sums(weight, terms), norms, weight.dtype, held, {})
        weight.map_blocks(finish)
        return {"mean": mean}

    def _steps(
        self,
        total: Callable[[Callable[[Slot], Sequence[Tensor]]], Tensor],
        norms: Tensor,
        dtype: torch.dtype,
        held: Blocks,
        kept: dict[Region, list[Tensor]] | None = None,
    ) -> Mapping[str, Tensor]:
        """Iterate; ``total`` sums terms over the weight, and ``held`` gets the mean's direction.

        ``kept``: gets the directions of the models, where there is room for them.
        """
        tangents: Blocks = {}
        before: Blocks = {}
        changes: list[bool] = []
        cosines: list[Tensor] = []
        steps: list[Tensor] = []

        def units(block: Slot) -> list[Tensor]:
            if kept is None:
                return _units(block, norms)
            if block.box not in kept:
                kept[block.box] = _units(block, norms)
            return kept[block.box]

        def begin(block: Slot) -> Sequence[Tensor]:
            held[block.box] = middle = _start(units(block))
            return [middle.float().square()]

        lengths = [total(begin)[0].sqrt().float()]

        def turn(block: Slot) -> Sequence[Tensor]:
            held[block.box] = middle = held[block.box] / float(lengths[-1])
            last = before.get(block.box)
            changes.append(last is None or not torch.equal(middle, last))
            before[block.box] = middle
            wide = middle.float()
            return [wide * unit for unit in units(block)]

        def pull(block: Slot) -> Sequence[Tensor]:
            tangent = _tangent(held[block.box], units(block), cosines[-1])
            if kept is not None:
                tangents[block.box] = tangent
            return [tangent.float().square()]

        def move(block: Slot) -> Sequence[Tensor]:
            middle = held[block.box]
            tangent = tangents.pop(block.box, None)
            if tangent is None:
                tangent = _tangent(middle, units(block), cosines[-1])
            held[block.box] = middle = _moved(middle, tangent, float(steps[-1]))
            return [middle.float().square()]

        for _ in range(self.max_iter):
            changes.clear()
            cosines.append(total(turn).to(dtype))
            if not any(changes):
                break
            steps.append(total(pull)[0].sqrt().float())
            if float(steps[-1]) < self.tol:
                steps.pop()
                break
            lengths.append(total(move)[0].sqrt().float())
        else:  # the last step is not divided by its length yet
            for region, middle in held.items():
                held[region] = middle / float(lengths[-1])
        return {
            "norms": norms,
            "cosines": torch.stack(cosines[: len(steps)]) if steps else norms.new_empty(0),
            "steps": torch.tensor(steps),
            "lengths": torch.stack(lengths),
        }

    def _warn_of_tol(self, dtype: torch.dtype) -> None:
        resolved = torch.finfo(dtype).eps / 16
        if self.tol < resolved and self.max_iter > 100:
            name = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"karcher: {name} resolves steps of about {resolved:.0e}, so none gets shorter "
                f"than tol {self.tol:g}, and up to {self.max_iter} are taken. Set dtype: float32, "
                "or a larger tol",
                MergeWarning,
                stacklevel=2,
            )

    def __call__(self, slot: Slot) -> Tensor:
        """Return the Karcher mean: [*shape], float32, or the inputs' dtype if that has 16 bits."""
        if "mean" in slot.measured:
            return slot.box.of(slot.measured["mean"]).clone()
        if "factors" in slot.measured:
            return weighted_sum(slot.experts, slot.measured["factors"].tolist())
        return _replayed(slot)


def _units(slot: Slot, norms: Tensor) -> list[Tensor]:
    """Divide each model by its norm, leaving out zeros: up to N of [*shape] in one dtype."""
    dtype = slot.dtype
    pairs = zip(slot.experts, norms.tolist(), strict=True)
    return [expert.to(dtype) / norm for expert, norm in pairs if norm > NO_DIRECTION]


def _start(units: Sequence[Tensor]) -> Tensor:
    """Average the directions, rounding after each operation: [*shape]."""
    first, *others = (unit * (1 / len(units)) for unit in units)
    for other in others:
        first = first + other
    return first


def _tangent(middle: Tensor, units: Sequence[Tensor], cosines: Tensor) -> Tensor:
    """Compute the mean of log_m(u), rounding after each operation: [*shape]."""
    total = torch.zeros_like(middle)
    for unit, cosine in zip(units, cosines.clamp(-1, 1), strict=True):
        angle = cosine.acos()
        if angle > 0:
            stretch = 1 / len(units) * (angle / angle.sin())
            total = total + stretch * (unit - cosine * middle)
    return total


def _moved(middle: Tensor, tangent: Tensor, step: float) -> Tensor:
    """Compute exp_m(T) before normalisation, rounding after each operation: [*shape]."""
    cosine, sine = torch.tensor([math.cos(step), math.sin(step)], dtype=middle.dtype)
    return torch.mul(middle, cosine).add_(torch.div(tangent, step).mul_(sine))


def _replayed(slot: Slot) -> Tensor:
    """Repeat the measured iteration on a block: [*shape] in the inputs' dtype."""
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
    """Register the methods of this family."""
    paper = "Karcher 1977; Afsari 2011; mergekit 0.1.5"
    register("karcher", Karcher, merges_base=True, paper=paper)
