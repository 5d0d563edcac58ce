"""Average models, or copy one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, PerExpert, Slot, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.arithmetic import weighted_sum
from merge_plugins.plugins import hookimpl


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Weighted average of the models [Wortsman et al. 2022, model soups]."""

    weight: PerExpert = parameter(doc="weight of each model")
    normalize: bool = parameter(True, doc="divide by the sum of the weights")
    granularity = ELEMENT
    shows_damage = True

    def __post_init__(self) -> None:
        if self.normalize and isinstance(self.weight, tuple) and abs(sum(self.weight)) < 1e-8:
            raise ParameterError(
                f"the weights {list(self.weight)} sum to zero, so their average is undefined; "
                "change a weight or set normalize: false"
            )

    def __call__(self, slot: Slot) -> Tensor:
        """Return sum(w x) / sum(w): float32 [*shape]."""
        total = weighted_sum(slot.experts, self.weight)
        if not self.normalize:
            return total
        # the divisor is a sum in this dtype: one unit in its last place shows in half the results
        share = torch.tensor(self.weight, dtype=total.dtype, device="cpu").sum()
        return total if share == 1 else total.div_(share)


@dataclass(frozen=True)
class Average:
    """Plain mean of the models; the base is not used [WIDEN, DARE: average_merging]."""

    granularity = ELEMENT
    shows_damage = True

    def __call__(self, slot: Slot) -> Tensor:
        """Return the mean of the models: float32 [*shape]."""
        return weighted_sum(slot.experts, (1.0,) * len(slot.experts)).div_(len(slot.experts))


@dataclass(frozen=True)
class Passthrough:
    """One model, each weight multiplied by ``scale``."""

    scale: PerExpert = parameter(1.0, doc="factor on every weight")
    granularity = ELEMENT
    shows_damage = True

    def __call__(self, slot: Slot) -> Tensor:
        """Return scale * x: float32 [*shape]."""
        return weighted_sum(slot.experts, self.scale)


def is_untouched(method: Passthrough) -> bool:
    """Check whether the model is copied unchanged: scale is 1."""
    return method.scale == (1.0,)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    soups = "Wortsman et al. 2022, arXiv:2203.05482"
    register("linear", Linear, paper=soups)
    register("average_merging", Average, paper=soups)
    register("passthrough", Passthrough, max_experts=1, copies=is_untouched)
