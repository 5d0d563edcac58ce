"""Compute weights as sums and differences of other models' weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.errors import MismatchError
from merge_plugins.recipe import Delta, Rebased, Reference
from merge_plugins.recipe.tokenizer import Tokenizer
from merge_plugins.sources.models import ComputedCheckpoint, Source, tied_to
from merge_plugins.tokenizer import Alignment, tokenizer_folder
from merge_plugins.tokenizer.vocabulary import (
    is_vocabulary,
    vocabulary,
)
from merge_plugins.weights import ComputedTensor, SourceTensor
from merge_plugins.weights.rows import MEAN, with_rows


def recovered(ref: Delta, model: Source, delta: Source) -> ComputedCheckpoint:
    """Add a delta to the model it was published against: model + delta, in float32.

    The authors of a delta with more rows first extended the model by the mean of its rows, as the
    published script of Alpaca and WizardLM does; these rows are treated likewise.
    """
    tensors: dict[str, SourceTensor] = {}
    for name, difference in delta.items():
        own = model.get(name) or tied_to(name, difference.shape, model)
        if not difference.dtype.is_floating_point:
            tensors[name] = difference
            continue
        if own is None:
            raise MismatchError(f"{name} is in the delta {delta.ref} but not in {model.ref}")
        rows = len(own.shape) == 2 and own.shape[1:] == difference.shape[1:]
        more = difference.shape[0] - own.shape[0] if rows else 0
        if more < 0 or (own.shape != difference.shape and not more):
            raise MismatchError(
                f"{name} is {list(difference.shape)} in the delta {delta.ref} but "
                f"{list(own.shape)} in {model.ref}. Is it a delta from this model?"
            )
        if more:
            own = with_rows(own, [*range(own.shape[0]), *[MEAN] * more])
        tensors[name] = _sum(difference, (own, 1), (difference, 1))
    return ComputedCheckpoint(ref, delta.path, delta.config, tensors)


def rebased(ref: Rebased, model: Source, own: Source, base: Source) -> ComputedCheckpoint:
    """Move an expert's task vector to another base: base + (model - own), in float32.

    ``own``: the base it was fine-tuned from. The vocabulary is the model's. If one base lacks a
    token, both use the other base's row, so that the result is the model's row.
    """
    tensors: dict[str, SourceTensor] = {}
    for name, weight in model.items():
        if not weight.dtype.is_floating_point:
            tensors[name] = weight
            continue
        inputs = {model.ref: weight}
        for other in (own, base):
            stored = other.get(name) or tied_to(name, weight.shape, other)
            if stored is None:
                raise MismatchError(
                    f"{name} is in {model.ref} but not in {other.ref}; an expert with a base of "
                    "its own, that base and base_model need the same weights"
                )
            inputs[other.ref] = stored
        if is_vocabulary(name, weight.shape, model.config):
            inputs = _by_token(model.ref, inputs)
        for source, term in inputs.items():
            if term.shape != weight.shape:
                raise MismatchError(
                    f"{name} is {list(weight.shape)} in {model.ref} but {list(term.shape)} in "
                    f"{source}; an expert, its own base and base_model need equal shapes"
                )
        tensors[name] = _sum(weight, *zip(inputs.values(), (1, -1, 1), strict=True))
    return ComputedCheckpoint(ref, model.path, model.config, tensors)


def _by_token(
    model: Reference, weights: Mapping[Reference, SourceTensor]
) -> dict[Reference, SourceTensor]:
    """Reorder the rows of both bases' weights into the order of the model's tokens."""
    tokens = {ref: vocabulary(tokenizer_folder(ref)) for ref in weights}
    if not all(tokens.values()):
        return dict(weights)
    n_rows = weights[model].shape[0]
    rows = {token: row for token, row in tokens[model].items() if row < n_rows}
    alignment = Alignment(Tokenizer(model, pad_to_multiple_of=n_rows), None, rows, tokens)
    bases = {ref: weight for ref, weight in weights.items() if ref != model}
    return {model: weights[model], **{ref: alignment.of(ref, bases) for ref in bases}}


def _sum(like: SourceTensor, *terms: tuple[SourceTensor, int]) -> ComputedTensor:
    inputs, signs = zip(*terms, strict=True)

    def compute(region: Region) -> Tensor:
        (first, _), *others = terms
        total = first.read(region).to(torch.float32, copy=True)
        for tensor, sign in others:
            total.add_(tensor.read(region).float(), alpha=sign)
        return total

    about = (like.name, like.file, like.dtype, like.shape)
    return ComputedTensor(*about, inputs, compute, how=("sum", signs))
