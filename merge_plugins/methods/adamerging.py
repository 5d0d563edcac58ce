"""AdaMerging: task arithmetic with coefficients that minimise the entropy of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from merge_plugins.api import ELEMENT, PerExpert, Slot, Sources, parameter
from merge_plugins.calibration.coefficients import Descent, blended, mean_entropy
from merge_plugins.errors import ParameterError
from merge_plugins.methods._fields import check_share
from merge_plugins.plugins import hookimpl


@dataclass(frozen=True)
class _Blend:
    """Add task vectors to the base, with separate coefficients for each weight."""

    coefficients: Mapping[str, PerExpert]

    def __call__(self, slot: Slot) -> Tensor:
        return blended(slot, self.coefficients[slot.name])


@dataclass(frozen=True)
class AdaMerging:
    """Task arithmetic, its coefficients learned from unlabelled texts [Yang et al. 2023].

    Minimises, by Adam, the mean entropy of the merge's predictions, summed over the experts' data.
    The paper's models are classifiers. Our extension to causal language models takes the entropy of
    the next token, over the response of each example, or over the whole text where there is no
    response. A confident prediction need not be right: give texts of the tasks at hand.
    """

    mode: Literal["layer_wise", "task_wise"] = parameter(
        "layer_wise", doc="one coefficient per expert for each weight, or for the whole model"
    )
    initial: float = parameter(0.3, doc="coefficient to start from, in [0, 1]")
    steps: int = parameter(500, doc="steps of Adam, each a batch of every expert's data")
    learning_rate: float = parameter(1e-3, doc="learning rate of Adam, above 0", alias=("lr",))
    granularity = ELEMENT

    def __post_init__(self) -> None:
        check_share("initial", (self.initial,))
        if self.steps < 0:
            raise ParameterError(f"steps is 0 or more; got {self.steps}")
        if not self.learning_rate > 0:
            raise ParameterError(f"learning_rate is a number above 0; got {self.learning_rate}")

    def prepare(self, sources: Sources) -> _Blend:
        """Learn the coefficients by gradient descent on the experts' data."""
        by_weight = self.mode == "layer_wise"
        learn = Descent(mean_entropy, self.initial, self.steps, self.learning_rate, by_weight)
        return _Blend(learn(sources))

    def __call__(self, slot: Slot) -> Tensor:
        """Merge with the initial coefficients: float32 [*shape]."""
        return blended(slot, [self.initial] * len(slot.experts))


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Yang et al. 2023, arXiv:2310.02575"
    facts = {"needs_base": True, "needs_data": True, "paper": paper}
    register("adamerging", AdaMerging, **facts)
