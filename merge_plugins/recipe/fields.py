"""Convert the mapping of a recipe file, with mergekit's keys, to the fields of a `Recipe`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from merge_plugins.errors import MergeWarning, RecipeError, nearest
from merge_plugins.plugins import Method, registry
from merge_plugins.recipe import data, keys, pooling, task, tokenizer
from merge_plugins.recipe.dtypes import dtype_name
from merge_plugins.recipe.parts import WHOLE
from merge_plugins.recipe.references import Reading, Reference, reference
from merge_plugins.recipe.settings import Settings, combined, read_settings
from merge_plugins.recipe.slices import Entry, Layers, Slice


def fields(mapping: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Parse a recipe's fields, not yet normalised; ``reading`` resolves the references in it."""
    given = {key: value for key, value in mapping.items() if value is not None}
    if "plugin" in given:  # before the method, which may be that plugin's
        raise RecipeError(f"plugin: {keys.UNREAD['plugin']}")
    method = _method(_method_name(given))
    keys.check_keys(given, keys.TOP, method)
    base = _optional(given.get("base_model"), reading)
    return {
        "merge_method": method.name,
        "slices": slices(given, method, reading),
        "base_model": base,
        "dtype": _dtype("dtype", given),
        "out_dtype": _dtype("out_dtype", given),
        "tokenizer": tokenizer.from_keys(given, base, reading),
        "chat_template": tokenizer.template(given.get("chat_template"), reading),
        "generation_config": _optional(given.get("generation_config"), reading),
        "donor_model": _optional(given.get("donor"), reading),
        "exclude": _exclude(given.get("exclude", ())),
        "seed": _seed(given.get("seed", 0)),
        "data": data.from_setting(given.get("data"), reading.folder),
        "pooling": pooling.from_setting(given.get("pooling"), reading),
    }


def _method(given: str) -> Method:
    """Look up the method by name; for an alias, warn which method it stands for."""
    method = registry().get(given)
    if given != method.name:
        message = f"{given} is the same as {method.name}: {method.aliases[given]}"
        warnings.warn(message, MergeWarning, stacklevel=4)
    return method


def _method_name(given: Mapping[str, Any]) -> str:
    name = given.get("merge_method")
    if isinstance(name, str) and name:
        return name
    key = nearest("merge_method", (key for key in given if isinstance(key, str)))
    if name is None and key is not None:
        value = given[key]
        raise RecipeError(f"write merge_method: {value} in place of {key}: {value}")
    got = "nothing" if name is None else repr(name)
    raise RecipeError(f"merge_method is a name; got {got}. Run 'merge-plugins list' to see them.")


def _dtype(key: str, given: Mapping[str, Any]) -> str | None:
    return dtype_name(given[key], key) if key in given else None


def _optional(given: Any, reading: Reading) -> Reference | None:
    return None if given is None else reference(given, reading)


def _exclude(given: Any) -> tuple[str, ...]:
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, Sequence) or not all(p and isinstance(p, str) for p in parts):
        raise RecipeError(f"exclude is a list of parts of tensor names; got {given!r}")
    if "none" in parts and len(parts) > 1:
        raise RecipeError(f"exclude: none stands alone; got {given!r}")
    return tuple(sorted(set(parts)))


def _seed(given: Any) -> int:
    try:
        if not isinstance(given, bool) and int(given) == float(given) >= 0:
            return int(given)
    except (OverflowError, TypeError, ValueError):
        pass
    raise RecipeError(f"seed is a whole number, 0 or more; got {given!r}")


def slices(given: Mapping[str, Any], method: Method, reading: Reading) -> tuple[Slice, ...]:
    """Parse a recipe's slices, or raise `RecipeError` unless one key gives them, and only one."""
    if sum(key in given for key in ("models", "slices", "modules")) != 1:
        raise RecipeError(
            "a recipe needs models: a list of {model, parameters} entries, or slices: for layers "
            "of them, once"
        )
    shared = read_settings(method, keys.scope(given.get("parameters"), method))
    if "modules" not in given:
        return _part(given, shared, method, reading)
    parsed: list[Slice] = []
    for part, module in _modules(given["modules"]).items():
        keys.check_keys(module, keys.MODULE, method, f"module {part}")
        own = read_settings(method, keys.scope(module.get("parameters"), method))
        in_part = _part(module, combined(own, shared), method, reading)
        parsed += [replace(slice_, part=part) for slice_ in in_part]
    return tuple(parsed)


def _part(
    given: Mapping[str, Any], shared: Settings, method: Method, reading: Reading
) -> tuple[Slice, ...]:
    """Parse the slices of a recipe or of one of its modules."""
    if sum(key in given for key in ("models", "slices")) != 1:
        raise RecipeError("a module needs models: or slices:, once")
    if given.get("models") is not None:
        return (Slice(_models(given["models"], method, reading), shared),)
    entries = given.get("slices")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise RecipeError(f"slices is a list of {{sources, parameters}}; got {entries!r}")
    return tuple(_slice(entry, shared, method, reading) for entry in entries)


def _modules(given: Any) -> Mapping[str, Mapping[str, Any]]:
    """Parse ``modules`` by name; a single ``default``, as mergekit writes, is the whole model."""
    modules = given if isinstance(given, Mapping) else {}
    if not modules or not all(isinstance(module, Mapping) for module in modules.values()):
        raise RecipeError(
            f"modules maps a module's name to {{slices}} or {{models}}; got {given!r}"
        )
    if [*modules] == ["default"]:
        return {WHOLE: modules["default"]}
    return {str(name): module for name, module in modules.items()}


def _slice(given: Any, shared: Settings, method: Method, reading: Reading) -> Slice:
    if not isinstance(given, Mapping):
        raise RecipeError(f"slices is a list of {{sources, parameters}}; got {given!r} in it")
    keys.check_keys(given, keys.SLICE, method, "a slice")
    models = _models(given.get("sources"), method, reading, in_slice=True)
    lengths = {m.layers[1] - m.layers[0] for m in models if m.layers}
    if len(lengths) > 1:
        shown = ", ".join(f"{m.ref} {list(m.layers)}" for m in models if m.layers)
        raise RecipeError(f"the sources of a slice need ranges of one length; got {shown}")
    own = read_settings(
        method, keys.scope(given.get("parameters"), method, "parameters of a slice")
    )
    base = given.get("base_model")
    own_base = None if base is None else Entry(reference(base, reading))
    return Slice(models, combined(own, shared), own_base)


def _models(
    entries: Any, method: Method, reading: Reading, *, in_slice: bool = False
) -> tuple[Entry, ...]:
    what = "sources" if in_slice else "models"
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        shown = "model, layer_range, parameters" if in_slice else "model, parameters"
        raise RecipeError(f"{what} is a list of at least one {{{shown}}}; got {entries!r}")
    models: dict[Reference, Entry] = {}
    for entry in entries:
        entry = entry if isinstance(entry, Mapping) else {"model": entry}
        ref = reference(_own_base(entry), reading)
        known = keys.SOURCE if in_slice else keys.ENTRY
        keys.check_keys(entry, known, method, str(ref))
        if ref in models:
            raise RecipeError(_twice(ref, in_slice=in_slice))
        scope = keys.scope(entry.get("parameters"), method, f"parameters of {ref}")
        parameters = read_settings(method, scope, str(ref))
        calibrated = data.from_setting(entry.get("data"), reading.folder)
        layers, head = _layers(entry.get("layer_range"), ref), task.from_setting(entry.get("task"))
        models[ref] = Entry(ref, parameters, calibrated, layers, head)
    return tuple(models.values())


def _twice(ref: Reference, *, in_slice: bool) -> str:
    message = f"{ref} is listed twice; list it once, with the sum of its weights"
    hint = ". To stack its layers, give each range a slice of its own"
    return f"{message}{hint if in_slice else ''}"


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
    """Combine an entry's ``model`` and the ``base_model`` beside it into one reference."""
    if entry.get("base_model") is None:
        return entry.get("model")
    return {"model": entry.get("model"), "base_model": entry["base_model"]}
