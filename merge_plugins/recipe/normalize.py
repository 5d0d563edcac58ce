"""Normalise the slices of a recipe, so that all spellings of one merge are equal.

In normal form, only merged models are listed, and parameters have canonical names and types. A
per-model parameter that is equal for all models of a slice is written once, in the slice's own
parameters; any other is written for each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.plugins import Method
from merge_plugins.recipe.data import Data
from merge_plugins.recipe.depth import is_whole
from merge_plugins.recipe.references import Rebased, Reference
from merge_plugins.recipe.settings import over, warn_unread
from merge_plugins.recipe.slices import Entry, Layers, Slice


def normal_slices(
    slices: Sequence[Slice], base_model: Reference | None, method: Method
) -> tuple[Slice, ...]:
    """Normalise the slices of a recipe, or raise `RecipeError`."""
    normal = tuple(_normal_slice(slice_, base_model, method) for slice_ in slices)
    return (_without_full_ranges(normal[0]),) if len(normal) == 1 else normal


def experts(slice_: Slice, base_model: Reference | None, method: Method) -> tuple[Entry, ...]:
    """List the merged models of a slice in the user's order.

    The rule for base_model:

    * A method that works from a base receives it separately: an entry for it is not an expert.
    * For any other method base_model provides config and tokenizer. It is an input too if it is
      listed. It also is one, and comes last, if the slice's own parameters set a per-model
      ``weight`` (mergekit's rule; the weight then applies to the base too), or if the method is
      registered with ``merges_base``.
    """
    base, weight = slice_.base.ref if slice_.base else base_model, method.parameters.get("weight")
    if method.works_from(base):
        return tuple(model for model in slice_.models if model.ref != base)
    weighs_base = weight is not None and weight.per_expert and "weight" in slice_.parameters
    is_input = weighs_base or method.merges_base
    if base is None or not is_input or base in (model.ref for model in slice_.models):
        return slice_.models
    return (*slice_.models, Entry(base, layers=_common(slice_.models, base)))


def _normal_slice(slice_: Slice, base_model: Reference | None, method: Method) -> Slice:
    base = slice_.base or (Entry(base_model) if base_model else None)
    ref = base.ref if base else None
    works_from_it = method.works_from(ref)
    models = [
        replace(_checked(model, ref, method), ref=_without_redundant_base(model.ref, ref))
        for model in slice_.models
    ]
    slice_ = replace(slice_, models=tuple(models))
    merged = experts(slice_, base_model, method)
    if base is not None and base.layers is None:
        listed = [model.layers for model in models if model.ref == base.ref]
        layers = listed[0] if listed else _common(merged, base.ref) if works_from_it else None
        base = replace(base, layers=layers)
    unlisted = {ref, base_model} - {None} - {model.ref for model in merged}
    slice_ = replace(slice_, models=merged, base=base if works_from_it else None)
    return _with_shared_parameters(
        slice_, method, base_is_unlisted=bool(unlisted) and not works_from_it
    )


def _checked(model: Entry, base: Reference | None, method: Method) -> Entry:
    """Drop parameters of the base, as mergekit does, with a warning.

    Refuses data of the base, and an expert's own base if the method works from none.
    """
    if not method.works_from(base) and isinstance(model.ref, Rebased):
        raise RecipeError(
            f"{method.name}: merges models, not task vectors, so {model.ref.model} takes no "
            "base_model of its own; delete it or choose a method that works from a base"
        )
    if not method.works_from(base) or model.ref != base:
        return model
    if model.data or model.task:
        what = "data" if model.data else "task"
        raise ParameterError(
            f"{method.name}: base_model takes no {what}, only the models merged into it do; delete "
            f"{what} of {model.ref}"
        )
    for word in model.parameters:
        warn_unread(method, word, f"base_model {model.ref}")
    return replace(model, parameters={})


def _common(models: Sequence[Entry], base: Reference) -> Layers | None:
    """Return the layer range that all models share; the unlisted base takes it too."""
    layers = {model.layers for model in models}
    if len(layers) > 1:
        raise RecipeError(
            f"the models of a slice give different layers, so those of the base are open; add "
            f"{{model: {base}, layer_range: [first, last + 1]}} to its sources"
        )
    return layers.pop() if layers else None


def _without_redundant_base(ref: Reference, base: Reference | None) -> Reference:
    """Drop an expert's own base if it equals the recipe's base."""
    return ref.model if isinstance(ref, Rebased) and ref.base_model == base else ref


def _without_full_ranges(slice_: Slice) -> Slice:
    """Drop the layer ranges of a merge's only slice if they cover all layers of every model."""
    if not all(map(is_whole, slice_.inputs)):
        return slice_
    base = slice_.base and replace(slice_.base, layers=None)
    return replace(slice_, base=base, models=tuple(replace(m, layers=None) for m in slice_.models))


def _with_shared_parameters(slice_: Slice, method: Method, *, base_is_unlisted: bool) -> Slice:
    """Move each per-expert parameter to the slice if its models agree, otherwise to every model."""
    shared, own = dict(slice_.parameters), [dict(model.parameters) for model in slice_.models]
    for name in (p.name for p in method.parameters.values() if p.per_expert and own):
        outer = shared.pop(name, None)
        settings = [over(parameters.pop(name, None), outer) for parameters in own]
        makes_input = name == "weight" and base_is_unlisted  # see `experts`
        if not makes_input and all(setting == settings[0] for setting in settings):
            shared |= {name: settings[0]} if settings[0] else {}
            continue
        for parameters, setting in zip(own, settings, strict=True):
            parameters |= {name: setting} if setting else {}
    models = tuple(replace(m, parameters=p) for m, p in zip(slice_.models, own, strict=True))
    return replace(slice_, parameters=shared, models=models)


def check_tasks(models: Sequence[Entry], *, is_one_task: bool) -> None:
    """Raise `RecipeError` for heads of which it is open whether to merge them, or which to take.

    ``is_one_task``: whether heads are merged, too.
    """
    owners: dict[str, Reference] = {}
    for model in models:
        if model.task is None:
            continue
        name = model.task.name
        if name in owners and not is_one_task:
            raise RecipeError(
                f"{name} is the task of {owners[name]} and of {model.ref}; delete one of the two, "
                "or write exclude: none to merge their heads, too"
            )
        owners[name] = model.ref
    if is_one_task and len(owners) > 1:
        raise RecipeError(
            f"exclude: none merges heads, and these answer {' and '.join(owners)}; delete it"
        )


def shared_data(
    slices: Sequence[Slice], data: Data | None
) -> tuple[tuple[Slice, ...], Data | None]:
    """Move calibration data to the recipe if all models share it, otherwise to each model."""
    own = [model.data or data for slice_ in slices for model in slice_.models]
    shared = own[0] if own and all(each == own[0] for each in own) else None
    each = iter([None] * len(own) if shared else own)
    with_data = (
        replace(slice_, models=tuple(replace(model, data=next(each)) for model in slice_.models))
        for slice_ in slices
    )
    return tuple(with_data), shared
