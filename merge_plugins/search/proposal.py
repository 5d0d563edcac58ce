"""Propose what may vary in a recipe: ``merge-plugins search --init``."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.errors import MergeError
from merge_plugins.plugins import Parameter, registry
from merge_plugins.plugins.values import is_number
from merge_plugins.recipe import Recipe
from merge_plugins.search.space import Space

RANGES: Mapping[str, tuple[float, float]] = {
    "weight": (0.0, 1.0),
    "density": (0.1, 1.0),
    "lambda": (0.3, 1.5),
    "t": (0.0, 1.0),
    "slerp_t": (0.0, 1.0),
    "gamma": (0.0, 0.2),
}
"""What papers try; other numbers vary from half to twice their default."""
IGNORED = ("int8_mask",)
"""Parameters that change nothing."""
HEAD = """\
# What may vary is {{low, high[, log][, step]}} or {{choices: [...]}}; delete what should not.
# Run: merge-plugins search {file} DIR
"""


def propose(recipe: Recipe, tasks: list[str]) -> dict[str, Any]:
    """Return a search.yaml's mapping with a range for each parameter of the recipe's method."""
    method, mapping = registry().get(recipe.merge_method), recipe.as_dict()
    if "models" not in mapping:
        raise MergeError(
            "ranges are proposed for merges of whole models; write those of slices by hand, as "
            "{low: …, high: …}"
        )
    mapping["models"] = [
        entry if isinstance(entry, dict) and "model" in entry else {"model": entry}
        for entry in mapping["models"]
    ]
    base = mapping.get("base_model")
    for parameter in method.parameters.values():
        if parameter.name in IGNORED:
            continue
        each = parameter.per_expert and parameter.name == "weight"
        scopes = [
            entry
            for entry in (mapping["models"] if each else [mapping])
            if not each or not method.works_from(recipe.base_model) or entry["model"] != base
        ]
        for scope in scopes:
            _vary(mapping, scope, parameter)
        if each and all(parameter.name in s.get("parameters", ()) for s in scopes):
            mapping.get("parameters", {}).pop(parameter.name, None)
    search = {"tasks": tasks, "budget": {"trials": 100}, "sampler": "tpe", "split": {"tune": 0.3}}
    return {**mapping, "search": search, "model": {"dtype": "bfloat16", "batch_size": "auto"}}


def _vary(mapping: dict[str, Any], scope: dict[str, Any], parameter: Parameter) -> None:
    """Let one parameter vary, unless the method refuses an end of what would be tried."""
    of_all = mapping.get("parameters", {}).get(parameter.name, parameter.default)
    given = scope.get("parameters", {}).get(parameter.name, of_all)
    before = scope.get("parameters")
    for varied in (*_choices(parameter), *_ranges(parameter, given)):
        scope["parameters"] = {**(before or {}), parameter.name: varied}
        try:
            Space.parse(mapping, Path.cwd()).check()
        except MergeError:
            continue
        return
    if before is None:
        scope.pop("parameters", None)
    else:
        scope["parameters"] = before


def _choices(parameter: Parameter) -> Iterator[dict[str, Any]]:
    kind = parameter.type
    if kind is bool:
        yield {"choices": [parameter.default, not parameter.default]}
    elif typing.get_origin(kind) is typing.Literal:
        yield {"choices": [*typing.get_args(kind)]}


def _ranges(parameter: Parameter, given: Any) -> Iterator[dict[str, Any]]:
    """Yield ranges, the wider first: a share ends at its default of 1."""
    if parameter.name in RANGES:
        low, high = RANGES[parameter.name]
        if is_number(given):
            low, high = min(low, given), max(high, given)
        yield {"low": low, "high": high}
    elif is_number(given) and given:
        for low, high in ((given / 2, given * 2), (given / 2, given)):
            if parameter.type is int:
                low, high = round(low), round(high)
            yield {"low": min(low, high), "high": max(low, high)}


def write(recipe: Recipe, tasks: list[str], file: Path) -> None:
    """Write a search.yaml, which must not exist."""
    if file.exists():
        raise MergeError(f"{file} exists; name another file, or remove it")
    text = yaml.safe_dump(
        propose(recipe, tasks), sort_keys=False, allow_unicode=True, default_flow_style=None
    )
    file.write_text(HEAD.format(file=file.name) + text, encoding="utf-8")
