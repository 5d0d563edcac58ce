"""The one recipe that all spellings of a merge share.

Models are those that are merged; parameters have their canonical names and types; one that is the
same for every model of a slice stands in the slice's own parameters, any other in each model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.references import Rebased, Reference
from merge_plugins.registry import Method
from merge_plugins.settings import MISSING, over, renamed
from merge_plugins.slices import Layers, Model, Slice, is_whole

if TYPE_CHECKING:
    from merge_plugins.recipe import Recipe


def normal_form(recipe: Recipe, method: Method) -> Recipe:
    """Return the one recipe that all spellings of this merge share, or raise `ParameterError`."""
    slices = tuple(_normal_slice(piece, recipe.base_model, method) for piece in recipe.slices)
    if len(slices) == 1:
        slices = (_whole_if_it_is(slices[0]),)
    recipe = replace(recipe, slices=slices)
    if recipe.donor_model == replace(recipe, donor_model=None).donor:
        recipe = replace(recipe, donor_model=None)
    if recipe.generation_config == recipe.donor:
        recipe = replace(recipe, generation_config=None)
    return _with_settled_data(recipe)


def experts(piece: Slice, base_model: Reference | None, method: Method) -> tuple[Model, ...]:
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
    return (*piece.models, Model(base, layers=_common(piece.models, base)))


def _normal_slice(piece: Slice, base_model: Reference | None, method: Method) -> Slice:
    models = [
        replace(model, parameters=renamed(method, model.parameters, str(model.ref)))
        for model in piece.models
    ]
    base = piece.base or (Model(base_model) if base_model else None)
    ref = base.ref if base else None
    works_from_it = method.works_from(ref)
    for model in models:
        _check_base(model, ref, method)
    models = [replace(model, ref=_settled_ref(model.ref, ref)) for model in models]
    shared = renamed(method, piece.parameters)
    piece = replace(piece, models=tuple(models), parameters=shared)
    merged = experts(piece, base_model, method)
    if base is not None and base.layers is None:
        listed = [model.layers for model in models if model.ref == base.ref]
        layers = listed[0] if listed else _common(merged, base.ref) if works_from_it else None
        base = replace(base, layers=layers)
    unlisted = {ref, base_model} - {None} - {model.ref for model in merged}
    piece = replace(piece, models=merged, base=base if works_from_it else None)
    return _settled(piece, method, base_is_unlisted=bool(unlisted) and not works_from_it)


def _check_base(model: Model, base: Reference | None, method: Method) -> None:
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


def _common(models: Sequence[Model], base: Reference) -> Layers | None:
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
        outer = shared.pop(name, MISSING)
        settings = [over(parameters.pop(name, MISSING), outer) for parameters in own]
        makes_input = name == "weight" and base_is_unlisted  # see experts
        if not makes_input and all(setting == settings[0] for setting in settings):
            shared |= {name: settings[0]} if settings[0] is not MISSING else {}
            continue
        for parameters, setting in zip(own, settings, strict=True):
            parameters |= {name: setting} if setting is not MISSING else {}
    models = tuple(replace(m, parameters=p) for m, p in zip(piece.models, own, strict=True))
    return replace(piece, parameters=shared, models=models)


def _with_settled_data(recipe: Recipe) -> Recipe:
    """Give the recipe the data that all models share, or each model its own."""
    own = [model.data or recipe.data for model in recipe.models]
    shared = own[0] if own and all(data == own[0] for data in own) else None
    each = iter([None] * len(own) if shared else own)
    slices = tuple(
        replace(piece, models=tuple(replace(model, data=next(each)) for model in piece.models))
        for piece in recipe.slices
    )
    return replace(recipe, slices=slices, data=shared)
