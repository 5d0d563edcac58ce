"""From ``models``, ``slices`` or ``modules``, as a recipe file holds them, to `Slice`s.

Parameters have four levels; the innermost that says something of a weight decides:

    models: / sources:      one model of one slice     settings of that model
    slices: [{parameters}]  one slice                  all settings
    modules: {…: {parameters}}                         one part of a model, all settings
    parameters:             the recipe                 all settings

The outer three are one here: each slice has its own copy of what the others say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge_plugins import data, levels
from merge_plugins.errors import RecipeError
from merge_plugins.modules import WHOLE
from merge_plugins.references import Reference, reference
from merge_plugins.registry import Method
from merge_plugins.settings import MISSING, Setting, over, renamed
from merge_plugins.slices import Layers, Model, Slice


def slices(given: Mapping[str, Any], method: Method, folder: Path) -> tuple[Slice, ...]:
    """Return what a recipe merges, or `RecipeError` when it does not say so exactly once."""
    if sum(key in given for key in ("models", "slices", "modules")) != 1:
        raise RecipeError(
            "a recipe needs models: a list of {model, parameters} entries, or slices: for layers "
            "of them, once"
        )
    shared = renamed(method, levels.scope(given.get("parameters"), method))
    if "modules" not in given:
        return _part(given, shared, method, folder)
    found: list[Slice] = []
    for part, module in _modules(given["modules"]).items():
        levels.check_keys(module, levels.MODULE, method, f"module {part}")
        own = renamed(method, levels.scope(module.get("parameters"), method))
        pieces = _part(module, _layered(own, shared), method, folder)
        found += [replace(piece, part=part) for piece in pieces]
    return tuple(found)


def _part(
    given: Mapping[str, Any], shared: Mapping[str, Setting], method: Method, folder: Path
) -> tuple[Slice, ...]:
    """Return the slices of a recipe or of one of its modules."""
    if sum(key in given for key in ("models", "slices")) != 1:
        raise RecipeError("a module needs models: or slices:, once")
    if given.get("models") is not None:
        return (Slice(_models(given["models"], method, folder), shared),)
    pieces = given.get("slices")
    if not isinstance(pieces, Sequence) or isinstance(pieces, str) or not pieces:
        raise RecipeError(f"slices is a list of {{sources, parameters}}; got {pieces!r}")
    return tuple(_slice(piece, shared, method, folder) for piece in pieces)


def _modules(given: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return modules by name; the only one of a text model, mergekit's default, is all of it."""
    modules = given if isinstance(given, Mapping) else {}
    if not modules or not all(isinstance(module, Mapping) for module in modules.values()):
        raise RecipeError(
            f"modules maps a module's name to {{slices}} or {{models}}; got {given!r}"
        )
    if [*modules] == ["default"]:
        return {WHOLE: modules["default"]}
    return {str(name): module for name, module in modules.items()}


def _slice(given: Any, shared: Mapping[str, Setting], method: Method, folder: Path) -> Slice:
    if not isinstance(given, Mapping):
        raise RecipeError(f"slices is a list of {{sources, parameters}}; got {given!r} in it")
    levels.check_keys(given, levels.SLICE, method, "a slice")
    models = _models(given.get("sources"), method, folder, in_slice=True)
    lengths = {m.layers[1] - m.layers[0] for m in models if m.layers}
    if len(lengths) > 1:
        shown = ", ".join(f"{m.ref} {list(m.layers)}" for m in models if m.layers)
        raise RecipeError(f"the sources of a slice need ranges of one length; got {shown}")
    own = renamed(method, levels.scope(given.get("parameters"), method, "parameters of a slice"))
    base = given.get("base_model")
    own_base = None if base is None else Model(reference(base, folder))
    return Slice(models, _layered(own, shared), own_base)


def _models(
    entries: Any, method: Method, folder: Path, *, in_slice: bool = False
) -> tuple[Model, ...]:
    what = "sources" if in_slice else "models"
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        keys = "model, layer_range, parameters" if in_slice else "model, parameters"
        raise RecipeError(f"{what} is a list of at least one {{{keys}}}; got {entries!r}")
    models: dict[Reference, Model] = {}
    for entry in entries:
        entry = entry if isinstance(entry, Mapping) else {"model": entry}
        ref = reference(_own_base(entry), folder)
        known = levels.SOURCE if in_slice else levels.ENTRY
        levels.check_keys(entry, known, method, str(ref))
        if ref in models:
            raise RecipeError(_twice(ref, in_slice=in_slice))
        parameters = levels.scope(entry.get("parameters"), method, f"parameters of {ref}")
        calibrated = data.from_setting(entry.get("data"), folder)
        models[ref] = Model(ref, parameters, calibrated, _layers(entry.get("layer_range"), ref))
    return tuple(models.values())


def _twice(ref: Reference, *, in_slice: bool) -> str:
    said = f"{ref} is listed twice; list it once, with the sum of its weights"
    more = ". To stack its layers, give each range a slice of its own"
    return f"{said}{more if in_slice else ''}"


def _layers(given: Any, ref: Reference) -> Layers | None:
    if given is None:
        return None
    whole = isinstance(given, Sequence) and all(type(item) is int for item in given)
    if not whole or len(given) != 2 or not 0 <= given[0] <= given[1]:
        raise RecipeError(
            f"layer_range is [first, last + 1], whole numbers from 0; got {given!r} for {ref}"
        )
    return given[0], given[1]


def _own_base(entry: Mapping[str, Any]) -> Any:
    """Return what an entry says of its model: a base_model beside it is a part of the reference."""
    if entry.get("base_model") is None:
        return entry.get("model")
    return {"model": entry.get("model"), "base_model": entry["base_model"]}


def _layered(inner: Mapping[str, Setting], outer: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return two scopes as one: the inner is read first."""
    return {
        name: over(inner.get(name, MISSING), outer.get(name, MISSING))
        for name in dict.fromkeys((*inner, *outer))
    }
