"""The short form of a recipe: ``method=ties,base=B,models=a:0.6+b:0.4,density=0.5``.

It survives every parser of lm-eval's ``--model_args``, which may hand us text, numbers (a path can
arrive as an int, ``0.5+0.5j`` as a complex), JSON values or None:

    method=NAME                     required unless in config; alias merge_method
    base=MODEL                      aliases base_model, pretrained
    models=MODEL[:WEIGHT]+…         ':' counts only before a number; a MODEL is a path, a hub id, a
                                    recipe file or MODEL++ADAPTER; also a list of such, a list of
                                    {model, weight} or {model, parameters}, a mapping model → weight
    weights=0.6+0.4                 or a list, one per model; or one number for all
    <parameter>=0.5                 any parameter of the method; per model: 0.5+0.3 or a JSON list
    params={…}                      the recipe's parameters as in YAML: gradients and filters
    data=texts.jsonl                or task:NAME; per model: a.jsonl+b.jsonl or a list; a mapping
    exclude=head+bias               parts of tensor names that are not merged
    seed=, out_dtype=, tokenizer_source=, chat_template=, generation_config=, donor=
    config=merge.yaml               a full recipe; the keys above override it (models= as a whole)

A list for a per-model parameter is always one value per model; a gradient of one needs params= or
config=. Paths are relative to the current folder, those in the file to the file's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge_plugins import recipe_file, recipe_keys, short_form
from merge_plugins.data import Data
from merge_plugins.errors import ParameterError, RecipeError, did_you_mean
from merge_plugins.registry import Method, Parameter, registry
from merge_plugins.slices import Model
from merge_plugins.tokenization import is_template

CHOSEN = ("tokenizer_source", "chat_template", "generation_config", "donor")
"""Keys that take a model or a word."""
KEYS = {
    "method": "merge_method",
    "merge_method": "merge_method",
    "base": "base_model",
    "base_model": "base_model",
    "pretrained": "base_model",
    "weights": "weight",
    **{key: key for key in ("models", "params", "config", "data")},
    **{key: key for key in ("seed", "out_dtype", "exclude", *CHOSEN)},
}
HARNESS = ("dtype", "tokenizer")  # lm-eval's own, even if a method had a parameter of that name


def split_model_args(args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that make the recipe, and the rest, which are the harness's."""
    strays = [key for key, value in args.items() if value == "" or not str(key).isidentifier()]
    if strays:
        raise RecipeError(
            f"cannot read {strays[0]!r} in model_args: lists need '+', JSON or config=; "
            "a bare ',' separates arguments"
        )
    words = {*KEYS, *_method(args).spellings} - {*HARNESS}
    ours = {key: value for key, value in args.items() if key in words}
    return ours, {key: value for key, value in args.items() if key not in words}


def fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's fields, as `merge_plugins.recipe_keys.fields` does for a file."""
    ours, rest = split_model_args(args)
    method = _method(args)
    for key in rest:
        hint = did_you_mean(key, {*KEYS, *method.spellings})
        raise RecipeError(f"{method.name}: no setting or parameter {key!r}{hint}")
    given = _by_name(ours, method)
    file = _file(given.pop("config", None))
    with recipe_file.naming(file) if file else nullcontext():
        held = recipe_file.read(file) if file else {}
    held |= _settings(given, held)
    if "tokenizer_source" in given:
        held.pop("tokenizer", None)
    if "models" in given:
        held = {key: value for key, value in held.items() if key not in ("slices", "modules")}
    with recipe_file.naming(file) if file else nullcontext():
        found = recipe_keys.fields(held, file.parent if file else Path())
    for name in (name for name in given if name not in KEYS.values() or name == "weight"):
        _set_parameter(found, method, name, given)
    if "data" in given:
        _set_data(found, method, short_form.data(given["data"]))
    return found


def _method(args: Mapping[str, Any]) -> Method:
    """Return the method these arguments name, or else their config= file."""
    named = [args[key] for key in ("method", "merge_method") if short_form.is_set(args.get(key))]
    file = _file(args.get("config"))
    if file and not named:
        with recipe_file.naming(file):
            named = [recipe_file.read(file).get("merge_method")]
    if not named or named[0] is None:
        raise RecipeError("no merge method given; add method=<name> or config=<merge.yaml>")
    return registry().get(short_form.text(named[0]))


def _file(given: Any) -> Path | None:
    if not short_form.is_set(given):
        return None
    return recipe_file.find(Path(short_form.text(given)).expanduser())


def _by_name(ours: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Return what is set, by the name of recipe key or parameter whatever its spelling."""
    found: dict[str, Any] = {}
    for key, value in ours.items():
        name = KEYS.get(key) or method.spellings[key].name
        if name in found and found[name] != value:
            raise RecipeError(f"{name} is given twice: {found[name]!r} and {key}={value!r}")
        found |= {name: value} if short_form.is_set(value) else {}
    return found


def _settings(given: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe keys that the arguments set, models resolved against the cwd."""
    found = {key: given[key] for key in ("merge_method", "seed", "out_dtype") if key in given}
    if "base_model" in given:
        found["base_model"] = short_form.reference(given["base_model"])
    for key in (key for key in CHOSEN if key in given):
        is_word = given[key] in ("base", "union") or is_template(given[key])
        found[key] = given[key] if is_word else short_form.reference(given[key])
    if "exclude" in given:
        parts = short_form.parsed(given["exclude"])
        found["exclude"] = parts if isinstance(parts, list) else short_form.text(parts).split("+")
    if "models" in given:
        found["models"] = short_form.models(given["models"])
    if "params" in given:
        params = short_form.parsed(given["params"])
        if not isinstance(params, Mapping):
            raise RecipeError(f"params is a mapping, {{density: 0.5}}; got {params!r}")
        found["parameters"] = {**(held.get("parameters") or {}), **params}
    return found


def _set_parameter(
    found: dict[str, Any], method: Method, name: str, given: Mapping[str, Any]
) -> None:
    """Set a parameter in every scope: the user typed it, so nothing else may win."""
    parameter = method.parameters.get(name)
    if parameter is None:  # only weights= of a method without
        raise ParameterError(f"{method.name}: no parameter 'weight'; it takes no weights")
    words = {parameter.name, *parameter.alias}
    slices, value = found["slices"], _value(parameter, given[name])
    own = _experts(found, method)
    if "models" in given and any(words & model.parameters.keys() for model in own):
        raise RecipeError(f"{name} is given twice: in models= and as {name}={given[name]!r}")
    one_each = parameter.per_expert and isinstance(value, list | tuple) and not _holds_rules(value)
    if one_each and len(value) != len(own):
        raise ParameterError(
            f"{method.name}: {name} has {len(value)} values for {len(own)} models; write one each, "
            "in the order of models=, or one for all (a gradient needs params= or config=)"
        )
    shared = not parameter.per_expert or any(words & piece.parameters.keys() for piece in slices)
    values = iter(value) if one_each else itertools.repeat(value)
    outer = {name: value} if shared and not one_each else {}

    def with_value(model: Model) -> Model:
        kept = {key: setting for key, setting in model.parameters.items() if key not in words}
        return replace(model, parameters=kept if outer else {**kept, name: next(values)})

    found["slices"] = tuple(
        replace(
            piece,
            parameters={k: v for k, v in piece.parameters.items() if k not in words} | outer,
            models=tuple(with_value(m) if m in own else m for m in piece.models),
        )
        for piece in slices
    )


def _set_data(found: dict[str, Any], method: Method, given: list[Data | None]) -> None:
    """Set what calibrates the models, one for all or one each, in place of the file's."""
    own = _experts(found, method)
    if len(given) not in (1, len(own)):
        raise RecipeError(
            f"data has {len(given)} values for {len(own)} models; write one each, in the order "
            "of models=, or one for all"
        )
    each: Iterator[Data | None]
    shared, each = (given[0], iter(())) if len(given) == 1 else (None, iter(given))
    found["slices"] = tuple(
        replace(
            piece,
            models=tuple(
                replace(model, data=next(each, None) if model in own else None)
                for model in piece.models
            ),
        )
        for piece in found["slices"]
    )
    found["data"] = shared


def _experts(found: Mapping[str, Any], method: Method) -> list[Model]:
    """Return the models of every slice, without a base that is listed with them."""
    return [
        model
        for piece in found["slices"]
        for model in piece.models
        if not method.works_from(base := piece.base.ref if piece.base else found["base_model"])
        or model.ref != base
    ]


def _value(parameter: Parameter, given: Any) -> Any:
    value = short_form.parsed(given)
    if isinstance(value, complex):
        value = short_form.text(value)
    if parameter.per_expert and isinstance(value, str) and "+" in value[1:]:
        return value.split("+")
    return value


def _holds_rules(value: Any) -> bool:
    return any(isinstance(item, Mapping) for item in value)
