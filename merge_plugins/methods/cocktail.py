"""LM-Cocktail: average models with weights computed from their losses on a few examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from merge_plugins.api import ELEMENT, Sources, parameter
from merge_plugins.calibration.losses import ExampleLoss, ModelType, check_temperature, weigh
from merge_plugins.errors import RecipeError
from merge_plugins.methods.averages import Linear
from merge_plugins.plugins import hookimpl


@dataclass(frozen=True)
class Cocktail:
    """Average weighed by softmax(-loss / temperature) on examples [Xiao et al. 2023]."""

    temperature: float = parameter(
        5.0, doc="temperature of the softmax, above 0; higher makes the weights more equal"
    )
    model_type: ModelType = parameter("decoder", doc="type of the models, which decides the loss")
    loss_batch_size: int = parameter(  # batch_size in model_args is lm-eval's own
        2, doc="examples per batch; losses are averaged per batch; overrides batch_size in data:"
    )
    max_input_length: int = parameter(
        2048, doc="tokens read of each input; overrides max_length in data:"
    )
    neg_number: int = parameter(7, doc="negatives per query, for an encoder or a reranker")
    granularity = ELEMENT

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        self._loss(seed=0)  # checks the other parameters

    def prepare(self, sources: Sources, /) -> Linear:
        """Compute the models' weights from their losses on the same examples."""
        examples, *others = (sources.examples(i) for i in range(len(sources.names)))
        if any(other != examples for other in others):
            raise RecipeError(
                "cocktail compares the models on the same examples; "
                "move data: from the models' entries to the top of the recipe"
            )
        loss = self._loss(seed=sources.seed)
        if self.model_type == "encoder":
            loss = dataclasses.replace(loss, pooling=sources.pooling())
        tokenizer, live = sources.tokenizer(0), sources.module
        weights = weigh(loss, self.temperature, sources.names, live, tokenizer, examples)
        return Linear(weight=weights, normalize=False)

    def _loss(self, seed: int) -> ExampleLoss:
        """Build the loss with this method's settings, which are checked on the way."""
        given = self.model_type, self.loss_batch_size, self.max_input_length, self.neg_number
        return ExampleLoss(*given, seed)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Xiao et al. 2023, arXiv:2311.13534"
    register("cocktail", Cocktail, needs_data=True, paper=paper)
