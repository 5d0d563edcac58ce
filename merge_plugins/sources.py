"""The models of a merge, opened: mappings from tensor name to a weight that is not read yet.

A stored model is a `Checkpoint`. Any other reference is computed from stored ones, box by box, as
its weights are read. A weight of it is whole in memory only while a method measures it, takes it
whole, or made it whole itself; one weight of each such model at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from merge_plugins.alignment import Alignment
from merge_plugins.api import Region
from merge_plugins.checkpoint import Checkpoint, open_checkpoint
from merge_plugins.companions import tokenizer_folder
from merge_plugins.computed import ComputedCheckpoint, ComputedTensor, SourceTensor
from merge_plugins.errors import MismatchError
from merge_plugins.hub import resolve
from merge_plugins.lora import Adapter
from merge_plugins.references import Delta, Lora, Rebased, Reference, home
from merge_plugins.rows import MEAN, with_rows
from merge_plugins.tokenization import Tokenizer
from merge_plugins.vocabulary import (
    is_vocabulary,
    vocabulary,
    vocabulary_size,
    with_vocabulary_size,
)

if TYPE_CHECKING:
    from merge_plugins.plan import PlannedTensor

Source: TypeAlias = Checkpoint | ComputedCheckpoint


def open_source(
    ref: Reference, base: Reference | None, opened: MutableMapping[Reference, Source]
) -> Source:
    """Open a model and whatever it is computed from; reads headers only.

    ``base``: the recipe's, to which experts of other bases are brought. ``opened``: models opened
    before; this one is added.
    """
    if ref not in opened:
        opened[ref] = _open(ref, base, opened)
    return opened[ref]


def _open(
    ref: Reference, base: Reference | None, opened: MutableMapping[Reference, Source]
) -> Source:
    if isinstance(ref, str):
        return open_checkpoint(ref)
    if isinstance(ref, Lora):
        model = open_source(ref.model, base, opened)
        tensors = Adapter(resolve(ref.adapter)).added_to(model)
        return ComputedCheckpoint(ref, model.path, _resized(model, tensors), tensors)
    if isinstance(ref, Delta):
        model, delta = open_source(ref.model, base, opened), open_checkpoint(ref.delta)
        return ComputedCheckpoint(ref, delta.path, delta.config, _recovered(model, delta))
    if isinstance(ref, Rebased):
        assert base is not None, "normal_form"
        model, *others = (open_source(r, base, opened) for r in (ref.model, ref.base_model, base))
        return ComputedCheckpoint(ref, model.path, model.config, _rebased(model, *others))
    from merge_plugins.runner import Merge  # which plans, which opens sources

    merge = Merge.of(ref)
    merge.plan.refuse_routing("source of another merge")
    path = resolve(home(ref))
    tensors = {name: _merged(tensor) for name, tensor in merge.tensors().items()}
    return ComputedCheckpoint(ref, path, merge.plan.config, tensors)


def tied_to(name: str, shape: Sequence[int], source: Source) -> SourceTensor | None:
    """Return the embedding that a head of that name and shape is tied to, if the model ties it."""
    config = {**source.config.get("text_config", {}), **source.config}
    if not config.get("tie_word_embeddings") or tuple(shape[:1]) != (config.get("vocab_size"),):
        return None
    alike = [t for n, t in source.items() if t.shape == tuple(shape) and n != name]
    return alike[0] if len(alike) == 1 else None


def _resized(model: Source, tensors: Mapping[str, SourceTensor]) -> Mapping[str, Any]:
    """Return a model's config, with the rows of an embedding that an adapter replaced."""
    rows = vocabulary_size(model.config)
    grown = {
        tensors[name].shape[0]
        for name, tensor in model.items()
        if tensor.shape[:1] == (rows,) and tensors[name].shape != tensor.shape
    }
    return with_vocabulary_size(model.config, grown.pop()) if len(grown) == 1 else model.config


def _recovered(model: Source, delta: Source) -> dict[str, SourceTensor]:
    """Return model + delta, in float32.

    Rows that only the delta has were added by its authors before they subtracted: as the mean of
    the model's rows, which is what the published script of Alpaca and WizardLM does.
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
    return tensors


def _rebased(model: Source, own: Source, base: Source) -> dict[str, SourceTensor]:
    """Return base + (model - its own base), in float32, with the model's vocabulary.

    A token that one of the bases lacks has the other's row in both, so the model's comes out.
    """
    tensors: dict[str, SourceTensor] = {}
    for name, weight in model.items():
        if not weight.dtype.is_floating_point:
            tensors[name] = weight
            continue
        inputs = {model.ref: weight}
        for other in (own, base):
            found = other.get(name) or tied_to(name, weight.shape, other)
            if found is None:
                raise MismatchError(
                    f"{name} is in {model.ref} but not in {other.ref}; an expert with a base of "
                    "its own, that base and base_model need the same weights"
                )
            inputs[other.ref] = found
        if is_vocabulary(name, weight.shape, model.config):
            inputs = _by_token(model.ref, inputs)
        for ref, found in inputs.items():
            if found.shape != weight.shape:
                raise MismatchError(
                    f"{name} is {list(weight.shape)} in {model.ref} but {list(found.shape)} in "
                    f"{ref}; an expert, its own base and base_model need equal shapes"
                )
        tensors[name] = _sum(weight, *zip(inputs.values(), (1, -1, 1), strict=True))
    return tensors


def _by_token(
    model: Reference, weights: Mapping[Reference, SourceTensor]
) -> dict[Reference, SourceTensor]:
    """Return a model's weight and those of two bases, their rows in the order of its tokens."""
    tokens = {ref: vocabulary(tokenizer_folder(ref)) for ref in weights}
    if not all(tokens.values()):
        return dict(weights)
    n_rows = weights[model].shape[0]
    rows = {token: row for token, row in tokens[model].items() if row < n_rows}
    alignment = Alignment(Tokenizer(model, pad_to_multiple_of=n_rows), None, rows, tokens)
    bases = {ref: weight for ref, weight in weights.items() if ref != model}
    return {model: weights[model], **{ref: alignment.of(ref, bases) for ref in bases}}


def _sum(like: SourceTensor, *terms: tuple[SourceTensor, int]) -> ComputedTensor:
    inputs = tuple(tensor for tensor, _ in terms)

    def compute(region: Region) -> Tensor:
        (first, _), *others = terms
        total = first.read(region).to(torch.float32, copy=True)
        for tensor, sign in others:
            total.add_(tensor.read(region).float(), alpha=sign)
        return total

    return ComputedTensor(like.name, like.file, like.dtype, like.shape, inputs, compute)


def _merged(tensor: Any) -> SourceTensor:
    """Return a weight of an inner merge, rounded as if it had been saved."""
    planned: PlannedTensor = tensor.planned
    if planned.kernel is None and len(planned.stored) == 1:
        (kept,) = planned.stored
        if kept.dtype == tensor.dtype == kept.read_as:
            return kept
    by_box = planned.kernel is not None and tensor.is_elementwise
    return ComputedTensor(
        tensor.name,
        planned.experts[0].file,
        tensor.dtype,
        planned.shape,
        planned.stored,
        compute=tensor.box if by_box else None,
        whole=None if by_box else lambda: tensor[...],
        ready=tensor.ready if by_box else lambda: None,
        read_as=tensor.dtype,
    )
