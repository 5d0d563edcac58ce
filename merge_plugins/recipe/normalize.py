"""The one recipe that all spellings of a merge share.

Models are those that are merged; parameters have their canonical names and types; one that is the
same for every model of a slice stands in the slice's own parameters, any other in each model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.plugins import Method
from merge_plugins.recipe.data import Data
from merge_plugins.recipe.depth import is_whole
from merge_plugins.recipe.references import Rebased, Reference
from merge_plugins.recipe.settings import over
from merge_plugins.recipe.slices import Entry, Layers, Slice


def normal_slices(
    slices: Sequence[Slice], base_model: Reference | None, method: Method
) -> tuple[Slice, ...]:
    """Return the slices in the one form that all spellings share, or raise `RecipeError`."""
    found = tuple(_normal_slice(slice_, base_model, method) for slice_ in slices)
    return (_whole_if_it_is(found[0]),) if len(found) == 1 else found


def experts(piece: Slice, base_model: Reference | None, method: Method) -> tuple[Entry, ...]:
    """Return the models of a slice that are merged, in the user's order.

    The one rule about base_model:

    * A method that works from a base receives it apart: an entry for it is no expert.
    * For any other method base_model gives config and tokenizer. It is an input too if it is
      listed, or, mergekit's rule, if the slice's own parameters hold a per-model ``weight``:
      that weight is then also the base's, and the base comes last. So it does where the method
      weighs no models and says so (``merges_base``).
    """
    base, weight = piece.base.ref if piece.base else base_model, method.parameters.get("weight")
    if method.works_from(base):
        return tuple(model for model in piece.models if model.ref != base)
    weighs_base = weight is not None and weight.per_expert and "weight" in piece.parameters
    is_input = weighs_base or method.merges_base
    if base is None or not is_input or base in (model.ref for model in piece.models):
        return piece.models
    return (*piece.models, Entry(base, layers=_common(piece.models, base)))


def _normal_slice(piece: Slice, base_model: Reference | None, method: Method) -> Slice:
    base = piece.base or (Entry(base_model) if base_model else None)
    ref = base.ref if base else None
    works_from_it = method.works_from(ref)
    for model in piece.models:
        _check_base(model, ref, method)
    models = [replace(model, ref=_settled_ref(model.ref, ref)) for model in piece.models]
    piece = replace(piece, models=tuple(models))
    merged = experts(piece, base_model, method)
    if base is not None and base.layers is None:
        listed = [model.layers for model in models if model.ref == base.ref]
        layers = listed[0] if listed else _common(merged, base.ref) if works_from_it else None
        base = replace(base, layers=layers)
    unlisted = {ref, base_model} - {None} - {model.ref for model in merged}
    piece = replace(piece, models=merged, base=base if works_from_it else None)
    return _settled(piece, method, base_is_unlisted=bool(unlisted) and not works_from_it)


def _check_base(model: Entry, base: Reference | None, method: Method) -> None:
    """Refuse settings of a base, and bases of models that are not compared with one."""
    if not method.works_from(base) and isinstance(model.ref, Rebased):
        raise RecipeError(
            f"{method.name}: merges models, not task vectors, so {model.ref.model} takes no "
            "base_model of its own; delete it or choose a method that works from a base"
        )
    refused = [*model.parameters, *(["data"] if model.data else [])]
    if method.works_from(base) and model.ref == base and refused:
        raise ParameterError(
            f"{method.name}: base_model takes no {refused[0]}, only the "
            f"models merged into it do; delete {refused[0]} of {model.ref}"
        )


def _common(models: Sequence[Entry], base: Reference) -> Layers | None:
    """Return the layers of a base that is not listed: those of every other model."""
    layers = {model.layers for model in models}
    if len(layers) > 1:
        raise RecipeError(
            f"the models of a slice give different layers, so those of the base are open; add "
            f"{{model: {base}, layer_range: [first, last + 1]}} to its sources"
        )
    return layers.pop() if layers else None


def _settled_ref(ref: Reference, base: Reference | None) -> Reference:
    """Return an expert without a base of its own if that is the recipe's anyway."""
    return ref.model if isinstance(ref, Rebased) and ref.base_model == base else ref


def _whole_if_it_is(piece: Slice) -> Slice:
    """Return the only slice of a merge without ranges if they are all layers of every model."""
    if not all(map(is_whole, piece.inputs)):
        return piece
    base = piece.base and replace(piece.base, layers=None)
    return replace(piece, base=base, models=tuple(replace(m, layers=None) for m in piece.models))


def _settled(piece: Slice, method: Method, *, base_is_unlisted: bool) -> Slice:
    """Give each per-expert parameter to every model, or to the slice if all have the same."""
    shared, own = dict(piece.parameters), [dict(model.parameters) for model in piece.models]
    for name in (p.name for p in method.parameters.values() if p.per_expert and own):
        outer = shared.pop(name, None)
        settings = [over(parameters.pop(name, None), outer) for parameters in own]
        makes_input = name == "weight" and base_is_unlisted  # see experts
        if not makes_input and all(setting == settings[0] for setting in settings):
            shared |= {name: settings[0]} if settings[0] else {}
            continue
        for parameters, setting in zip(own, settings, strict=True):
            parameters |= {name: setting} if setting else {}
    models = tuple(replace(m, parameters=p) for m, p in zip(piece.models, own, strict=True))
    return replace(piece, parameters=shared, models=models)


def shared_data(
    slices: Sequence[Slice], data: Data | None
) -> tuple[tuple[Slice, ...], Data | None]:
    """Give the recipe the data that all its models share, or each model its own."""
    own = [model.data or data for slice_ in slices for model in slice_.models]
    shared = own[0] if own and all(each == own[0] for each in own) else None
    each = iter([None] * len(own) if shared else own)
    found = (
        replace(slice_, models=tuple(replace(model, data=next(each)) for model in slice_.models))
        for slice_ in slices
    )
    return tuple(found), shared
