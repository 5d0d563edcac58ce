"""WUDI-Merging: a task vector that interferes least with each expert's own, found by descent."""

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
    experts' t_i and takes ``steps`` of Adam on sum_i ||(t - t_i) t_iᵀ||² / ||t_i||². The rows of a
    t_i stand for the inputs it was trained on, whose span they lie in. Other weights get the mean
    task vector. How far it goes matters: steps times learning_rate is all an entry can move.
    """

    steps: int = parameter(300, doc="steps of Adam, 0 or more", alias=("iter_num",))
    learning_rate: float = parameter(1e-5, doc="of Adam, above 0: each entry moves at most so far")
    lambda_: float = lambda_field()
    granularity = MATRIX

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ParameterError(f"steps is 0 or more; got {self.steps}")
        if not self.learning_rate > 0:
            raise ParameterError(f"learning_rate is a number above 0; got {self.learning_rate}")

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""

        def cost(outputs: int, inputs: int, n_experts: int) -> float:
            start = n_experts * (inputs + 2 * outputs)
            return 2.0 * outputs * inputs * (start + self.steps * inputs)

        announce(sources, "wudi", f"{self.steps} steps of Adam", cost)

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * mean task vector: float32 [*shape]."""
        return averaged(slot, self.lambda_)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return base + lambda * merged task vector: see `by_matrix`."""
        return by_matrix(weight, self.lambda_, self.merge)

    def merge(self, matrix: Matrix) -> Rows:
        """Return how rows of a matrix are merged.

        The loss is quadratic: at t0 + d its gradient is 2 (g0 + d A), where g0 is half of that at
        the sum t0 and A = sum t_iᵀ t_i / ||t_i||². So a step is one product however many experts
        there are, each row descends by itself, and float32 is right up to rounding of d.
        """
        squares = [0.0] * matrix.n_experts
        for piece in matrix.pieces():
            for i, delta in enumerate(piece.deltas):
                squares[i] += float(delta.square().sum())
        norms = [square**0.5 or 1.0 for square in squares]  # of an expert that is the base: any
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
        """Return how far Adam takes rows d, first 0, on d · (d A + 2 g0): float32 [rows, n].

        ``slope`` is g0, [rows, n], ``gram`` is A, [n, n]. With the defaults of `torch.optim.Adam`
        [Kingma & Ba 2015, algorithm 1], which itself imports torch's compiler: 70 MB, seconds.
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
