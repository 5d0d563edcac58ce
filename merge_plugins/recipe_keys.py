"""From what a recipe file holds, in mergekit's words, to the fields of a `Recipe`.

Unlike mergekit, a key that is unknown, or at a level where nobody reads it, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_plugins.errors import ParameterError, RecipeError, did_you_mean
from merge_plugins.references import reference
from merge_plugins.registry import Method, Parameter, registry
from merge_plugins.settings import Setting, canonical, scalar
from merge_plugins.whole_models import whole_models

KEYS = (
    *("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "seed", "slices", "modules"),
)
LATER = {
    "tokenizer": "write tokenizer_source: base, or a model",
    "chat_template": "the merge keeps the template of its tokenizer",
    "name": "one recipe per file; save the inner merge and name its folder",
    "experts": "mixtures of experts are not built",
}
DTYPES = ("float32", "float16", "bfloat16", "float64")


def fields(mapping: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's fields: `models` as (reference, parameters) pairs, references resolved."""
    given = {key: value for key, value in mapping.items() if value is not None}
    method = registry().get(_method_name(given.get("merge_method")))
    _check_keys(given, method)
    entries, parameters = given.get("models"), _scope(given.get("parameters"), "parameters")
    if sum(key in given for key in ("models", "slices", "modules")) != 1:
        raise RecipeError("a recipe needs models: a list of {model, parameters} entries, once")
    if entries is None:
        entries, parameters = whole_models(given, parameters, folder)
    _check_parameters(parameters, method)
    base = reference(given["base_model"], folder) if "base_model" in given else None
    return {
        "merge_method": method.name,
        "models": _models(entries, method, folder),
        "base_model": base,
        "parameters": parameters,
        "dtype": _dtype("dtype", given),
        "out_dtype": _dtype("out_dtype", given),
        "tokenizer_source": _tokenizer(given.get("tokenizer_source"), base, folder),
        "seed": _seed(given.get("seed", 0)),
    }


def renamed(
    method: Method, parameters: Mapping[str, Setting], model: str = ""
) -> dict[str, Setting]:
    """Return one scope's parameters under their canonical names, canonically spelled.

    ``model`` names the entry they were written in; empty: they are the recipe's own.
    """
    found: dict[str, Setting] = {}
    for word, setting in parameters.items():
        parameter = method.spellings.get(word)
        if parameter is None:
            hint = did_you_mean(word, method.spellings) or "."
            raise ParameterError(
                f"{method.name}: no parameter {word!r}{hint} "
                f"Run 'merge-plugins show {method.name}' to see them."
            )
        if parameter.name in found:
            words = " and ".join((parameter.name, *parameter.alias))
            raise ParameterError(f"{method.name}: {words} are one parameter; write it once")
        if model and not parameter.per_expert:
            raise ParameterError(
                f"{method.name}: {word} is one setting for the whole merge, not per model; move it "
                f"from the entry of {model} to the recipe's own parameters:"
            )
        found[parameter.name] = _canonical(method, parameter, setting)
    return found


def _canonical(method: Method, parameter: Parameter, setting: Setting) -> Setting:
    return canonical(setting, lambda value: scalar(method, parameter, value))


def _models(
    entries: Any, method: Method, folder: Path
) -> tuple[tuple[str, dict[str, Setting]], ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise RecipeError(
            f"models is a list of at least one {{model, parameters}}; got {entries!r}"
        )
    models: dict[str, dict[str, Setting]] = {}
    for entry in entries:
        entry = entry if isinstance(entry, Mapping) else {"model": entry}
        ref = reference(entry.get("model"), folder)
        for key in entry:
            if key not in ("model", "parameters"):
                raise RecipeError(f"{ref}: {_misplaced(str(key), method, in_model=True)}")
        if ref in models:
            raise RecipeError(f"{ref} is listed twice; list it once, with the sum of its weights")
        models[ref] = _scope(entry.get("parameters"), f"parameters of {ref}")
        _check_parameters(models[ref], method)
    return tuple(models.items())


def _check_keys(given: Mapping[str, Any], method: Method) -> None:
    for key in given:
        if key in LATER:
            raise RecipeError(f"{key}: not supported yet; {LATER[key]}")
        if key not in KEYS:
            raise RecipeError(_misplaced(str(key), method))


def _misplaced(key: str, method: Method, *, in_model: bool = False) -> str:
    """Say where a key belongs that nobody reads where it is."""
    parameter = method.spellings.get(key)
    if parameter is not None and in_model and parameter.per_expert:
        return f"{key} belongs under parameters: of this entry, not beside model:"
    if parameter is not None:
        return f"{key} is a parameter of {method.name}; it belongs under the recipe's parameters:"
    if in_model and key in KEYS:
        return f"{key} belongs at the top of the recipe, not beside model:"
    if in_model and key in ("layer_range", "sources"):
        return f"{key}: layer stacking is not supported yet; whole models are"
    known = ("model", "parameters") if in_model else KEYS
    hint = did_you_mean(key, (*known, *method.spellings))
    return f"no recipe key {key!r}{hint or '; there are ' + ', '.join(known)}"


def _check_parameters(parameters: Mapping[str, Setting], method: Method) -> None:
    for key in parameters:
        if key in KEYS and key not in method.spellings:
            raise RecipeError(f"{key} belongs at the top of the recipe, not under parameters:")


def _scope(given: Any, where: str) -> dict[str, Setting]:
    if not isinstance(given or {}, Mapping):
        raise RecipeError(f"{where} is a mapping from name to value; got {given!r}")
    return {str(key): value for key, value in (given or {}).items()}


def _method_name(given: Any) -> str:
    if not isinstance(given, str) or not given:
        got = "nothing" if given is None else repr(given)
        raise RecipeError(
            f"merge_method is a name; got {got}. Run 'merge-plugins list' to see them."
        )
    return given


def _dtype(key: str, given: Mapping[str, Any]) -> str | None:
    if key not in given:
        return None
    name = str(given[key]).removeprefix("torch.")
    if name not in DTYPES:
        hint = did_you_mean(name.replace("fp", "float").replace("bf", "bfloat"), DTYPES)
        raise RecipeError(f"{key} is one of {', '.join(DTYPES)}; got {given[key]!r}{hint}")
    return name


def _tokenizer(given: Any, base: str | None, folder: Path) -> str | None:
    if given == "union":
        raise RecipeError("tokenizer_source: union: not supported yet; write base, or a model")
    if given == "base" and base is None:
        raise RecipeError("tokenizer_source: base needs base_model: <model>; or name a model")
    if given in (None, "base"):
        return given  # type: ignore[no-any-return]
    ref = reference(given, folder)
    return "base" if ref == base else ref


def _seed(given: Any) -> int:
    try:
        if not isinstance(given, bool) and int(given) == float(given) >= 0:
            return int(given)
    except (TypeError, ValueError):
        pass
    raise RecipeError(f"seed is a whole number, 0 or more; got {given!r}")
