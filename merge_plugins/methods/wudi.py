"""WUDI-Merging: a task vector that interferes least with each expert's own, found by descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import Slot, Sources, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.hookspecs import hookimpl
from merge_plugins.matrices import Deltas, announce, by_matrix
from merge_plugins.methods.task_vectors import lambda_field


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

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ParameterError(f"steps is 0 or more; got {self.steps}")
        if not self.learning_rate > 0:
            raise ParameterError(f"learning_rate is a number above 0; got {self.learning_rate}")

    def prepare(self, sources: Sources) -> None:
        """Say what it costs."""

        def cost(outputs: int, inputs: int, n_experts: int) -> float:
            return 2.0 * outputs * inputs**2 * (2 * n_experts + self.steps)

        announce(sources, "wudi", f"{self.steps} steps of Adam", cost)

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * merged task vector: float32 [*shape]."""
        return by_matrix(slot, self.lambda_, self.merge)

    def merge(self, deltas: Deltas) -> Tensor:
        """Merge the task vectors of one matrix: float64 [outputs, inputs].

        The loss is quadratic: its gradient is 2 (t A - B) with A = sum t_iᵀ t_i / ||t_i||² and
        B = sum t_i t_iᵀ t_i / ||t_i||², so that a step is one product however many experts.
        """
        first = next(iter(deltas))
        merged, own = torch.zeros_like(first), torch.zeros_like(first)
        gram = first.new_zeros(first.shape[1], first.shape[1])
        for delta in deltas:
            norm = delta.square().sum()
            if norm > 0:  # else it is the base, with which nothing interferes
                share = (delta.mT @ delta).div_(norm)
                gram += share
                own += delta @ share
                merged += delta
        optimizer = torch.optim.Adam([merged], lr=self.learning_rate)
        for _ in range(self.steps):
            merged.grad = (merged @ gram).sub_(own).mul_(2)
            optimizer.step()
        return merged


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Cheng et al. 2025, arXiv:2503.08099"
    register("wudi", Wudi, matrices=True, needs_base=True, paper=paper)
