"""Turn a live model into another merge, in the memory it has.

A rehearsal of loading knows of which boxes of which stored weights each live one is made: renamed,
fused, split or tied. Each box of the merge is written where the loader would put it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from merge_plugins.engine import MergedTensor
from merge_plugins.errors import MismatchError
from merge_plugins.hf.rehearsal import Rehearsal
from merge_plugins.hf.versions import DTYPE, LAZY
from merge_plugins.outputs.device_map import only_device
from merge_plugins.outputs.load import Loading, describe, open_loading
from merge_plugins.parallel import pool
from merge_plugins.recipe import Recipe
from merge_plugins.routing.routed import Routed
from merge_plugins.weights.modules import of_transformer
from merge_plugins.weights.pieces import Piece, covers

logger = logging.getLogger(__name__)

AT_ONCE = 4
"""Weights written at once: while one is measured, or sent to its device, others are merged."""
OF_LOADING = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Keys of a config that say how it was loaded, not what the model computes."""


def overwrite(
    model: PreTrainedModel, recipe: Recipe, *, trust_remote_code: bool | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Turn a live model into the merge of a recipe, and return the model to use from now on.

    It equals ``load_merged`` of the recipe, with the dtypes and devices that the live model has; it
    is in evaluation mode and has no gradients. As a rule it is the same object, overwritten in
    place. Where not every element can be accounted for, the merge is loaded anew, the log says why,
    and the model given is left as it is: quantised, offloaded or sharded models, routed merges,
    weights that the loader computes, a config that computes something else, transformers 4. Then
    ``kwargs`` are those of `load_merged`; dtype, placement, attention and quantisation are by
    default the live model's.

    Raises `MergeError` before any weight is written when the recipe is wrong or its merge has other
    weights than the model. After an error while a source is read, the model holds parts of both
    merges: overwrite it again, or drop it.
    """
    if not isinstance(model, PreTrainedModel):
        raise MismatchError(
            f"overwrite takes a model of transformers, not {type(model).__name__}; give the one "
            "that load_merged or from_pretrained returned"
        )
    options = {**_as_it_is(model), **kwargs}
    loading = open_loading(recipe, _own_class(model), options, None, trust_remote_code)
    _refuse_another_type(model, loading)
    reason = in_place(model, loading, options)
    if reason:
        logger.warning("the merge is loaded anew, because %s", reason)
        return loading.load(options)
    return model


def in_place(model: PreTrainedModel, loading: Loading, options: Mapping[str, Any]) -> str:
    """Overwrite a live model with an opened merge; or return why not, and leave it as it is.

    ``options``: arguments of ``from_pretrained`` to check the merge with. Raises as `overwrite`.
    """
    found = loading.check(options)
    reason = _not_in_place(model, loading, found)
    if reason or found is None:
        return reason
    # a method that runs its models does so before a weight is written
    loading.merge.settled(only_device(_places(model)))
    _write(model, found, of_transformer(loading.merge.tensors()))
    model.train(False)
    model.zero_grad(set_to_none=True)
    if model.can_generate():
        model.generation_config = GenerationConfig.from_model_config(model.config)
    describe(model, loading.merge)
    return ""


def _as_it_is(model: PreTrainedModel) -> dict[str, Any]:
    """Return the arguments of from_pretrained that load a model as a live one is."""
    found: dict[str, Any] = {DTYPE: model.dtype}
    attention = getattr(model.config, "_attn_implementation", None)
    if attention is not None:
        found["attn_implementation"] = attention
    places = _places(model)
    if {*map(str, places.values())} != {"cpu"}:
        found["device_map"] = places
    if getattr(model.config, "quantization_config", None):
        found["quantization_config"] = model.config.quantization_config
    return found


def _places(model: PreTrainedModel) -> Mapping[str, Any]:
    """Return the device map that puts a model where a live one is."""
    return getattr(model, "hf_device_map", None) or {"": model.device}


def _own_class(model: PreTrainedModel) -> Any:
    """Return the class of a model without the one that routing gave it."""
    return next(each for each in type(model).__mro__ if not issubclass(each, Routed))


def _refuse_another_type(model: PreTrainedModel, loading: Loading) -> None:
    mine, other = model.config.model_type, loading.config.model_type
    if mine != other:
        raise MismatchError(
            f"the live model is a {mine} model and the merge a {other} model; build one with "
            "load_merged"
        )


def _not_in_place(model: PreTrainedModel, loading: Loading, found: Rehearsal | None) -> str:
    """Return why a model cannot be overwritten in place; "" if it can.

    Raises `MismatchError` if the merge has other weights than the model.
    """
    if loading.merge.plan.method.is_routed or isinstance(model, Routed):
        return "a routed model is more than its weights"
    if not LAZY:
        return "transformers 4 does not say where it puts stored weights"
    if found is None:
        return f"where {type(model).__name__} puts stored weights is not known"
    if getattr(model.config, "quantization_config", None):
        return "the live model is quantised"
    weights = model.state_dict(keep_vars=True)
    for name, weight in weights.items():
        if type(weight) not in (Tensor, torch.nn.Parameter) or weight.is_inference():
            return f"{name} is a {type(weight).__name__} that cannot be written to piece by piece"
        if weight.is_meta:
            return f"{name} is offloaded"
    if any("dynamic" in str(getattr(m, "rope_type", "")) for m in model.modules()):
        return "its rotary embedding depends on the longest text it has read"
    _refuse_other_weights(weights, found.shapes)
    for name, shape in found.shapes.items():
        if not covers(found.live.get(name, ()), shape):
            return f"{name} is not made of stored weights piece by piece"
    if _ties(weights) != _ties(found.model.state_dict(keep_vars=True)):
        return "other weights of the live model are tied than of the merge"
    theirs = found.model.config.to_dict()
    for key, mine, other in _differences(model.config.to_dict(), theirs):
        return f"{key} is {mine!r} in the live model's config and {other!r} in the merge's"
    return ""


def _refuse_other_weights(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    live = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(live.keys() | shapes.keys()):
        mine, other = live.get(name), shapes.get(name)
        if mine != other:
            has, makes = (list(shape) if shape else "absent" for shape in (mine, other))
            raise MismatchError(
                f"{name} is {has} in the live model and {makes} in the merge, whose config or "
                "vocabulary differs. Build a model of this merge with load_merged"
            )


def _ties(weights: Mapping[str, Tensor]) -> set[frozenset[str]]:
    """Group the names of weights that share one memory."""
    groups: dict[Any, set[str]] = {}
    for name, weight in weights.items():
        memory = id(weight) if weight.is_meta or not weight.numel() else weight.data_ptr()
        groups.setdefault((memory, weight.shape, weight.stride()), set()).add(name)
    return set(map(frozenset, groups.values()))


def _differences(
    mine: Mapping[str, Any], other: Mapping[str, Any], within: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over the keys in which two configs differ, and their values."""
    for key in sorted((mine.keys() | other.keys()) - {*OF_LOADING}):
        first, second = mine.get(key), other.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _differences(first, second, f"{within}{key}.")
        elif first != second:
            yield f"{within}{key}", first, second


def _write(model: PreTrainedModel, found: Rehearsal, tensors: Mapping[str, MergedTensor]) -> None:
    """Write every piece of every weight once; tied weights are one."""
    weights = model.state_dict()
    pieces = [
        (piece, weights[min(names)]) for names in _ties(weights) for piece in found.live[min(names)]
    ]
    order = {name: i for i, name in enumerate(tensors)}
    pieces.sort(key=lambda each: order[each[0].source])  # as they lie in the files

    def write(each: tuple[Piece, Tensor]) -> None:
        piece, weight = each
        box = tuple(slice(*bounds) for bounds in piece.origin)
        tensors[piece.source].into(piece.within(weight), box)

    pool()  # the threads of the next line start after its own
    with ThreadPoolExecutor(AT_ONCE, "overwrite") as threads:
        futures = [threads.submit(write, each) for each in pieces]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
