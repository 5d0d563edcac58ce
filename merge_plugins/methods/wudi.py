"""WUDI-Merging: find the task vector that interferes least with the experts', by descent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import MATRIX, Slot, Sources, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.methods._fields import lambda_field
from merge_plugins.ops.matrices import Matrix, Rows, announce, averaged, by_matrix, total
from merge_plugins.plugins import hookimpl

MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999


@dataclass(frozen=True)
class Wudi:
    """Minimise interference of linear layers without data, by gradient descent [Cheng et al. 2025].

    For each linear layer [outputs, inputs] the merged task vector t starts as the sum of the
    experts' t_i and takes ``steps`` of Adam on sum_i ||(t - t_i) t_iᵀ||² / ||t_i||². The rows of
    t_i stand in for its training inputs, in whose span they lie. Other weights get the mean task
    vector. The length of the descent matters: an entry moves by at most steps * learning_rate.
    """

    steps: int = parameter(300, doc="steps of Adam, 0 or more", alias=("iter_num",))
    learning_rate: float = parameter(
        1e-5, doc="learning rate of Adam, above 0; an entry moves at most so far per step"
    )
    lambda_: float = lambda_field()
    granularity = MATRIX

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ParameterError(f"steps is 0 or more; got {self.steps}")
        if not self.learning_rate > 0:
            raise ParameterError(f"learning_rate is a number above 0; got {self.learning_rate}")

    def prepare(self, sources: Sources) -> None:
        """Log the cost of the merge."""

        def cost(outputs: int, inputs: int, n_experts: int) -> float:
            start = n_experts * (inputs + 2 * outputs)
            return 2.0 * outputs * inputs * (start + self.steps * inputs)

        announce(sources, "wudi", f"{self.steps} steps of Adam", cost)

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]; see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge)

    def merge(self, matrix: Matrix) -> Rows:
        """Build the function that computes merged rows from the same rows of the task vectors.

        The loss is quadratic: its gradient at t0 + d is 2 (g0 + d A), where g0 is half the gradient
        at the sum t0 and A = sum t_iᵀ t_i / ||t_i||². So a step takes one product for any number of
        experts, rows descend independently, and float32 is exact up to rounding of d.
        """
        squares = [0.0] * matrix.n_experts
        for piece in matrix.pieces():
            for i, delta in enumerate(piece.deltas):
                squares[i] += float(delta.square().sum())
        norms = [square**0.5 or 1.0 for square in squares]  # an expert equal to the base: any
        gram = torch.zeros(matrix.shape[1], matrix.shape[1])
        for piece in matrix.pieces():
            for delta, norm in zip(piece.deltas, norms, strict=True):
                unit = delta.div_(norm).float()
                gram.addmm_(unit.mT, unit)

        def descended(deltas: Sequence[Tensor]) -> Tensor:
            start = total(deltas)
            slope = torch.zeros_like(start)
            for i, norm in enumerate(norms):
                others = start - deltas[i]
                for piece in matrix.pieces():
                    unit = piece.deltas[i].div_(norm)
                    slope.addmm_(others @ unit.mT, unit)
            return start.add_(self.descent(slope.float(), gram))

        return descended

    def descent(self, slope: Tensor, gram: Tensor) -> Tensor:
        """Minimise d · (d A + 2 g0) by Adam from d = 0: float32 [rows, n].

        ``slope`` is g0 [rows, n], ``gram`` is A [n, n]. Adam [Kingma & Ba 2015, algorithm 1] has
        the defaults of `torch.optim.Adam`, which is not used: it imports torch's compiler, 70 MB
        and seconds.
        """
        moved, mean, square = (torch.zeros_like(slope) for _ in range(3))
        for step in range(1, self.steps + 1):
            gradient = (moved @ gram).add_(slope).mul_(2)
            mean.lerp_(gradient, 1 - MEAN_DECAY)
            square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - SQUARE_DECAY)
            spread = torch.sqrt(square, out=gradient).div_((1 - SQUARE_DECAY**step) ** 0.5)
            rate = self.learning_rate / (1 - MEAN_DECAY**step)
            moved.addcdiv_(mean, spread.add_(1e-8), value=-rate)
        return moved


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Cheng et al. 2025, arXiv:2503.08099"
    register("wudi", Wudi, needs_base=True, paper=paper)
