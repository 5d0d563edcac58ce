"""From what a recipe file holds, in mergekit's words, to the fields of a `Recipe`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_plugins import data, levels, slice_keys, tokenization
from merge_plugins.errors import MergeWarning, RecipeError, did_you_mean
from merge_plugins.references import Reference, reference
from merge_plugins.registry import Method, registry

DTYPES = ("float32", "float16", "bfloat16", "float64")


def fields(mapping: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's fields as they are written, references resolved against ``folder``."""
    given = {key: value for key, value in mapping.items() if value is not None}
    method = _method(given.get("merge_method"))
    levels.check_keys(given, levels.TOP, method)
    base = _optional(given.get("base_model"), folder)
    return {
        "merge_method": method.name,
        "slices": slice_keys.slices(given, method, folder),
        "base_model": base,
        "dtype": _dtype("dtype", given),
        "out_dtype": _dtype("out_dtype", given),
        "tokenizer": tokenization.from_keys(given, base, folder),
        "chat_template": tokenization.template(given.get("chat_template"), folder),
        "generation_config": _optional(given.get("generation_config"), folder),
        "donor_model": _optional(given.get("donor"), folder),
        "exclude": _exclude(given.get("exclude", ())),
        "seed": _seed(given.get("seed", 0)),
        "data": data.from_setting(given.get("data"), folder),
    }


def _method(given: Any) -> Method:
    """Return the method of that name; the one place that says what an alias really is."""
    method = registry().get(_method_name(given))
    if given != method.name:
        said = f"{given} is the same as {method.name}: {method.aliases[given]}"
        warnings.warn(said, MergeWarning, stacklevel=4)
    return method


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


def _optional(given: Any, folder: Path) -> Reference | None:
    return None if given is None else reference(given, folder)


def _exclude(given: Any) -> tuple[str, ...]:
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, Sequence) or not all(p and isinstance(p, str) for p in parts):
        raise RecipeError(f"exclude is a list of parts of tensor names; got {given!r}")
    return tuple(sorted(set(parts)))


def _seed(given: Any) -> int:
    try:
        if not isinstance(given, bool) and int(given) == float(given) >= 0:
            return int(given)
    except (TypeError, ValueError):
        pass
    raise RecipeError(f"seed is a whole number, 0 or more; got {given!r}")
