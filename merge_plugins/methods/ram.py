"""RAM: average changes that several models made, keep changes of one model whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merge_plugins.api import ELEMENT, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.arithmetic import rounded_sum, sums, task_vectors
from merge_plugins.plugins import hookimpl


def epsilon_field() -> Any:
    """Parameter `epsilon`: magnitude up to which a change counts as none."""
    return parameter(1e-5, doc="changes up to this magnitude count as none, 0 or more")


def changes(slot: Slot, epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Zero changes up to ``epsilon``, and count the models that changed each entry.

    Returns N task vectors of [*shape] and counts [*shape], all in the inputs' dtype.
    """
    deltas = [hardshrink(delta, epsilon) for delta in task_vectors(slot)]
    return deltas, functools.reduce(Tensor.add, (delta.sign().abs_() for delta in deltas))


def check_not_negative(**values: float) -> None:
    """Raise if a value is below zero."""
    for name, value in values.items():
        if value < 0:
            raise ParameterError(f"{name} is 0 or more; got {value:g}")


@dataclass(frozen=True)
class Ram:
    """Base plus the mean of the changes over the models that made one [Yuan et al. 2026, RAM].

    Numbers are mergekit's, including where it rounds to the inputs' dtype.
    """

    epsilon: float = epsilon_field()
    granularity = ELEMENT

    def __post_init__(self) -> None:
        check_not_negative(epsilon=self.epsilon)

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + unique changes or means of shared ones: [*shape] in the inputs' dtype."""
        deltas, n_changed = changes(slot, self.epsilon)
        n_changed.clamp_(min=1)
        return slot.base + rounded_sum([delta / n_changed for delta in deltas])


@dataclass(frozen=True)
class RamPlus:
    """RAM that amplifies each model's unique changes, weight by weight [Yuan et al. 2026, RAM+].

    The factor is 1 + r * min(shared / unique, alpha). In each weight, ``shared`` counts the entries
    that a model changed along with others, ``unique`` those that it changed alone.
    """

    r: float = parameter(0.1, doc="factor on the ratio of shared to unique changes, 0 or more")
    alpha: float = parameter(0.2, doc="upper limit of that ratio, 0 or more")
    epsilon: float = epsilon_field()
    granularity = ELEMENT

    def __post_init__(self) -> None:
        check_not_negative(r=self.r, alpha=self.alpha, epsilon=self.epsilon)

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the factor on each model's unique changes: float32 [N]."""

        def counted(block: Slot) -> Sequence[Tensor]:
            deltas, n_changed = changes(block, self.epsilon)
            changed = [delta.sign().abs_() for delta in deltas]
            alone = n_changed == 1
            return [*(one * alone for one in changed), *(one * ~alone for one in changed)]

        unique, shared = sums(weight, counted).view(2, -1)
        ratio = torch.where(unique > 0, shared / unique, 0.0)
        return {"factor": (1 + self.r * ratio.clamp(max=self.alpha)).float()}

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + amplified unique changes or means of shared ones: float32 [*shape]."""
        deltas, n_changed = changes(slot, self.epsilon)
        alone = (n_changed == 1).float()
        n_changed.clamp_(min=1)
        total = slot.base.float()
        for delta, factor in zip(deltas, slot.measured["factor"].tolist(), strict=True):
            total = total + (delta / n_changed).float() * (1 + alone * (factor - 1))
        return total


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    facts = {"needs_base": True, "paper": "Yuan et al. 2026, arXiv:2601.13572"}
    register("ram", Ram, **facts)
    register("ramplus_tl", RamPlus, **facts)
