"""Average fine-tunes of one model as LM-Cocktail does, by given weights or by a few examples.

The names, arguments and defaults of `LM_Cocktail` [Xiao et al. 2023, arXiv:2311.13534], on the one
engine here: a mix is a recipe of method ``linear``, merged tensor by tensor as it loads. The recipe
that finds the weights itself is method ``cocktail``.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from merge_plugins.calibration.losses import ExampleLoss, ModelType, weigh
from merge_plugins.engine import open_merge
from merge_plugins.errors import ParameterError, did_you_mean
from merge_plugins.folders import new_folder
from merge_plugins.hf.experts import placed
from merge_plugins.hf.versions import DTYPE
from merge_plugins.outputs.load import load_merged
from merge_plugins.outputs.save import save
from merge_plugins.planning.embedding import known, pooling_of
from merge_plugins.recipe import Recipe, data
from merge_plugins.recipe.references import written
from merge_plugins.tokenizer import tokenizer_folder

__all__ = ["compute_weights", "mix_models", "mix_models_by_layers", "mix_models_with_data"]

AUTO_CLASSES: Mapping[str, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModel,
    "reranker": AutoModelForSequenceClassification,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
"""Auto class of each of LM-Cocktail's model types."""
OFF = 1e-3
"""Largest distance from 1 of the sum of given weights."""


def mix_models(
    model_names_or_paths: Sequence[Any],
    model_type: str,
    weights: Sequence[float],
    output_path: str | os.PathLike[str] | None = None,
    *,
    pooling: str | Sequence[str] | None = None,
    dtype: torch.dtype | str = torch.float32,
    trust_remote_code: bool | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Mix models by given weights: a live model, in float32 on the CPU by default.

    A model is a folder, a hub id, or anything else a recipe's ``model:`` may be, another `Recipe`
    included; the first gives config and tokenizer. ``model_type`` is decoder, encoder, reranker or
    encoder-decoder. ``weights``: one per model, with sum 1. With ``output_path``, a new folder, the
    mix is also written there, an encoder as sentence-transformers model that embeds as its models
    do. If they have no ``modules.json``, ``pooling`` is needed, as in a recipe: LM-Cocktail's own
    encoders have ``pooling=["cls", "normalize"]``. ``kwargs`` are those of `load_merged`
    (device_map, ...).

    Raises `MergeError` before any weight is read if models, weights and type do not fit together.
    """
    auto_class = _auto_class(model_type)
    recipe = _mix(model_names_or_paths, weights, dtype, pooling)
    target = None if output_path is None else new_folder(output_path)
    if target is not None and model_type == "encoder":
        known(open_merge(recipe).plan.embedding)
    kwargs = {DTYPE: "auto", "trust_remote_code": trust_remote_code, **kwargs}
    model = load_merged(recipe, auto_class, **kwargs)
    if target is not None:
        save(recipe, target)
    return model


mix_models_by_layers = mix_models
"""Another name of `mix_models`: every mix is made tensor by tensor, without temporary files."""


def mix_models_with_data(
    model_names_or_paths: Sequence[Any],
    model_type: str,
    example_data: Sequence[Mapping[str, Any]],
    temperature: float = 5.0,
    batch_size: int = 2,
    max_input_length: int = 2048,
    neg_number: int = 7,
    output_path: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    pooling: str | Sequence[str] | None = None,
    dtype: torch.dtype | str = torch.float32,
    trust_remote_code: bool | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Mix models by the weights that `compute_weights` finds."""
    if output_path is not None:
        new_folder(output_path)
    weights = compute_weights(
        model_names_or_paths,
        model_type,
        example_data,
        temperature,
        batch_size,
        max_input_length,
        neg_number,
        seed=seed,
        pooling=pooling,
        trust_remote_code=trust_remote_code,
    )
    return mix_models(
        model_names_or_paths,
        model_type,
        weights,
        output_path,
        pooling=pooling,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        **kwargs,
    )


def compute_weights(
    model_names_or_paths: Sequence[Any],
    model_type: str,
    example_data: Sequence[Mapping[str, Any]],
    temperature: float = 5.0,
    batch_size: int = 2,
    max_input_length: int = 2048,
    neg_number: int = 7,
    *,
    seed: int = 0,
    pooling: str | Sequence[str] | None = None,
    trust_remote_code: bool | None = None,
) -> list[float]:
    """Compute softmax(-loss / temperature) of models on examples: one weight each, with sum 1.

    An example is ``{"input", "output"}`` for a decoder or an encoder-decoder, ``{"query", "pos":
    [...], "neg": [...]}`` for an encoder or a reranker; ``seed`` decides which ``neg_number`` of
    the negatives are drawn. ``pooling``: how encoders embed, if they do not say so themselves. For
    the losses, see `merge_plugins.calibration.losses`. One model at a time is loaded, in float32,
    onto the GPU if there is one. Logs every loss and weight.

    Raises `MergeError` before any weight is read if models, examples and type do not fit together.
    """
    auto_class = _auto_class(model_type)
    models = model_names_or_paths
    kind = cast(ModelType, model_type)
    loss = ExampleLoss(kind, batch_size, max_input_length, neg_number, seed)
    examples = [data.example(row, f"example {n}") for n, row in enumerate(example_data, 1)]
    loss.check(examples)
    mix = _mix(models, [1 / (len(models) or 1)] * len(models), "float32", pooling)
    plan = open_merge(mix).plan
    if kind == "encoder":
        loss = dataclasses.replace(loss, pooling=pooling_of(plan.embedding))

    def live(index: int) -> Any:
        gc.collect()  # the last one refers to itself
        alone = _mix(models[index : index + 1], [1.0], "float32")
        return placed(
            load_merged(alone, auto_class, trust_remote_code=trust_remote_code, **{DTYPE: "auto"})
        )

    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_folder(mix), trust_remote_code=trust_remote_code
    )
    names = [str(written(model.ref)) for model in mix.models]
    return list(weigh(loss, temperature, names, live, tokenizer, examples))


def _auto_class(model_type: str) -> Any:
    if model_type not in AUTO_CLASSES:
        hint = did_you_mean(str(model_type), AUTO_CLASSES)
        raise ParameterError(
            f"model_type is one of {', '.join(AUTO_CLASSES)}; got {model_type!r}{hint}"
        )
    return AUTO_CLASSES[model_type]


def _mix(
    models: Sequence[Any],
    weights: Sequence[float],
    dtype: torch.dtype | str,
    pooling: str | Sequence[str] | None = None,
) -> Recipe:
    """Build the recipe of a weighted sum that is rounded once, to ``dtype``."""
    if len(weights) != len(models):
        raise ParameterError(
            f"{len(weights)} weights for {len(models)} models; give one for each, in their order"
        )
    shares = [float(weight) for weight in weights]
    total = math.fsum(shares)
    if models and not abs(total - 1) < OFF:
        raise ParameterError(
            f"weights are shares of 1, but {shares} sum to {total:g}; divide each by the sum"
        )
    return Recipe.from_mapping(
        {
            "merge_method": "linear",
            "models": [
                {"model": _named(model), "parameters": {"weight": share}}
                for model, share in zip(models, shares, strict=True)
            ],
            "parameters": {"normalize": False},
            "out_dtype": str(dtype),
            "pooling": pooling,
        }
    )


def _named(model: Any) -> Any:
    """Spell a model as a recipe's ``model:``."""
    if isinstance(model, Recipe):
        return model.as_dict()
    return os.fspath(model) if isinstance(model, os.PathLike) else model
