"""Compute a live model's loss on a few examples, by which LM-Cocktail weights models.

[Xiao et al. 2023, LM-Cocktail, arXiv:2311.13534] with the losses of its code. Examples are
padded to the longest of their batch and masked by length, so no tokenizer needs a padding token;
of a prompt that is too long the end is kept, and all of the response.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from merge_plugins.api import Example, Pooling
from merge_plugins.calibration.batches import UNSCORED, Row, padded, pair_row, text_row
from merge_plugins.calibration.pooling import pooled
from merge_plugins.errors import ParameterError, RecipeError

ModelType: TypeAlias = Literal["decoder", "encoder", "reranker", "encoder-decoder"]
"""Kind of model, in LM-Cocktail's terms; it decides the loss."""
CONTRASTIVE_TEMPERATURE = 0.05


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExampleLoss:
    """Compute the mean loss per batch of a model of one type on a few examples.

    Raises `ParameterError` for sizes below 1.
    """

    model_type: ModelType = "decoder"
    batch_size: int = 2
    max_input_length: int = 2048
    """Tokens per input. Truncates the start of a prompt with response, the end of other texts."""
    neg_number: int = 7
    """Negatives per query, drawn without replacement."""
    seed: int = 0
    """Seed of the draw of negatives, which are the same for every model."""
    pooling: Pooling | None = None
    """How encoders embed a text; other models need none."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_input_length", "neg_number"):
            if getattr(self, name) < 1:
                raise ParameterError(f"a loss has {name} 1 or more; got {getattr(self, name)}")

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `RecipeError` if the examples cannot be scored; needs no model."""
        if not examples:
            raise RecipeError(
                "LM-Cocktail weighs models by their loss on examples, and there are none; "
                "give about five"
            )
        for number, example in enumerate(examples, 1):
            lacking = self._lacking(example)
            if lacking:
                raise RecipeError(
                    f"example {number} ({example.prompt!r:.40}) {lacking}, which model_type "
                    f"{self.model_type} needs"
                )

    def _lacking(self, example: Example) -> str:
        if self.model_type == "decoder":
            return "" if example.prompt or example.response else "has no text"
        if self.model_type == "encoder-decoder":
            return "" if example.response else "has no response"
        if not example.positives:
            return "has no positive (pos)"
        n_negatives = len(example.negatives)
        short = n_negatives < self.neg_number
        return f"has {n_negatives} of the {self.neg_number} negatives (neg)" if short else ""

    def __call__(self, model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
        """Compute the loss of a transformers model in evaluation mode, on its own device."""
        self.check(examples)
        positions = getattr(model.config, "max_position_embeddings", None) or self.max_input_length
        limit = min(self.max_input_length, tokenizer.model_max_length, positions)
        batches = self._batches(examples)
        with torch.no_grad():
            losses = [float(self._of(model, tokenizer, batch, limit)) for batch in batches]
        mean = math.fsum(losses) / len(losses)
        if not math.isfinite(mean):
            raise RecipeError(f"the loss of {model.name_or_path} on the examples is {mean}")
        return mean

    def _of(self, model: Any, tokenizer: Any, batch: Sequence[Example], limit: int) -> Tensor:
        if self.model_type != "encoder":
            return LOSSES[self.model_type](model, tokenizer, batch, limit)
        if self.pooling is None:
            raise RecipeError("the loss of an encoder needs to know how it pools: pooling: mean")
        limit = min(limit, self.pooling.max_length or limit)
        return contrastive_loss(model, tokenizer, batch, limit, self.pooling.modes)

    def _batches(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        if self.model_type in ("encoder", "reranker"):
            examples = [self._drawn(number, example) for number, example in enumerate(examples)]
        for start in range(0, len(examples), self.batch_size):
            yield examples[start : start + self.batch_size]

    def _drawn(self, number: int, example: Example) -> Example:
        """Draw ``neg_number`` negatives, in an order that depends on seed and number only."""

        def rank(negative: int) -> bytes:
            return hashlib.sha256(f"{self.seed}/{number}/{negative}".encode()).digest()

        chosen = sorted(range(len(example.negatives)), key=rank)[: self.neg_number]
        return dataclasses.replace(example, negatives=tuple(example.negatives[i] for i in chosen))


def weigh(
    loss: ExampleLoss,
    temperature: float,
    names: Sequence[str],
    module: Callable[[int], Any],
    tokenizer: Any,
    examples: Sequence[Example],
) -> tuple[float, ...]:
    """Weight models by their loss; ``module(i)`` loads the i-th, one at a time.

    All models use the first one's tokenizer: only then are losses per token comparable.
    """
    check_temperature(temperature)
    loss.check(examples)
    progress = tqdm(range(len(names)), desc="Loss on the examples", unit="model", delay=2)
    losses = [loss(module(i), tokenizer, examples) for i in progress]
    weights = shares(losses, temperature)
    for name, one, weight in zip(names, losses, weights, strict=True):
        logger.info("%s: loss %.4f on %d examples, weight %.4f", name, one, len(examples), weight)
    return weights


def check_temperature(temperature: float) -> None:
    """Raise `ParameterError` unless the temperature is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ParameterError(f"temperature is a number above 0; got {temperature}")


def shares(losses: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Compute softmax(-loss / temperature): one positive weight per model, with sum 1."""
    logits = torch.tensor(losses, dtype=torch.float64) / -temperature
    return tuple(logits.softmax(0).tolist())


def causal_loss(model: Any, tokenizer: Any, batch: Sequence[Example], limit: int) -> Tensor:
    """Compute the mean cross-entropy of responses, or of all tokens of texts without one."""
    rows = [text_row(tokenizer, example, limit) for example in batch]
    for row, example in zip(rows, batch, strict=True):
        if len(row["input_ids"]) < 2:
            raise RecipeError(
                f"example {example.prompt!r:.40} is read as less than 2 tokens; a loss needs one "
                "to predict the next from"
            )
    inputs = on_device(model, rows)
    labels = inputs.pop("labels")[:, 1:]
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNSCORED)


def contrastive_loss(
    model: Any, tokenizer: Any, batch: Sequence[Example], limit: int, modes: Sequence[str]
) -> Tensor:
    """Compute the mean cross-entropy of each query's positive among the batch's passages.

    Texts are embedded by pooling in these ``modes``, whatever their length; cosines are divided by
    0.05.
    """

    def embed(texts: Sequence[str]) -> Tensor:
        inputs = on_device(model, [pair_row(tokenizer, Example(text), limit) for text in texts])
        states: Tensor = model.base_model(**inputs).last_hidden_state
        return functional.normalize(pooled(states, inputs["attention_mask"], modes), dim=-1)

    queries = embed([example.prompt for example in batch])
    passages = embed([passage for example in batch for passage in passages_of(example)])
    scores = queries @ passages.T / CONTRASTIVE_TEMPERATURE
    positives = torch.arange(len(queries), device=scores.device) * (len(passages) // len(queries))
    return functional.cross_entropy(scores, positives)


def reranking_loss(model: Any, tokenizer: Any, batch: Sequence[Example], limit: int) -> Tensor:
    """Compute the mean cross-entropy of each query's positive among its own passages.

    Ours: LM-Cocktail mixes rerankers but has no loss for them.
    """
    if model.config.num_labels != 1:
        raise RecipeError(
            f"{model.name_or_path} has {model.config.num_labels} labels; a reranker has one, "
            "the score of a passage"
        )
    pairs = [
        Example(example.prompt, passage) for example in batch for passage in passages_of(example)
    ]
    rows = [pair_row(tokenizer, pair, limit) for pair in pairs]
    # a classifier over a decoder finds the last token by its padding token, if it has one
    size = 1 if model.config.pad_token_id is None else len(rows)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    scores = torch.cat([model(**on_device(model, group)).logits.float() for group in groups])
    scores = scores.view(len(batch), -1)
    return functional.cross_entropy(scores, scores.new_zeros(len(batch), dtype=torch.int64))


def seq2seq_loss(model: Any, tokenizer: Any, batch: Sequence[Example], limit: int) -> Tensor:
    """Compute the mean cross-entropy of responses; transformers derives it from labels."""
    rows = [pair_row(tokenizer, Example(example.prompt), limit) for example in batch]
    for row, example in zip(rows, batch, strict=True):
        target = tokenizer(text_target=example.response, truncation=True, max_length=limit)
        row["labels"] = target["input_ids"]
    loss: Tensor = model(**on_device(model, rows), use_cache=False).loss
    return loss


def passages_of(example: Example) -> tuple[str, ...]:
    """List the passages that a query is compared with, the positive first."""
    return (example.positives[0], *example.negatives)


def on_device(model: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Pad rows into a batch on the model's device."""
    pad = max(0, model.config.pad_token_id or 0)  # LLaMA 1 sets -1
    return {name: tensor.to(model.device) for name, tensor in padded(rows, pad).items()}


LOSSES: Mapping[ModelType, Callable[[Any, Any, Sequence[Example], int], Tensor]] = {
    "decoder": causal_loss,
    "reranker": reranking_loss,
    "encoder-decoder": seq2seq_loss,
}
"""Losses of models that embed nothing."""
