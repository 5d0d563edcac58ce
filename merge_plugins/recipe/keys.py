"""Which keys a recipe has at which level, and what to say of one that stands at another.

Unlike mergekit, a key that is unknown, or at a level where nobody reads it, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge_plugins.errors import RecipeError, did_you_mean
from merge_plugins.plugins import Method

TOP = (
    *("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template", "generation_config"),
    *("donor", "exclude", "seed", "data", "slices", "modules", "name"),
)
MODULE = ("models", "slices", "parameters")
SLICE = ("sources", "base_model", "parameters")
ENTRY = ("model", "base_model", "parameters", "data")
"""Keys of one of the models."""
SOURCE = (*ENTRY, "layer_range")
"""Keys of one of the sources of a slice."""
UNREAD = {
    "experts": "mixtures of experts are not built",
    "residual_weight": "mergekit reads it and does nothing with it; delete it",
    "input_model_parameters": "no mergekit reads it; write parameters: in the model's entry",
    "override_architecture": "the architecture is that of the model; delete it",
}
"""Keys that some recipes have, and why they are not read."""


def check_keys(
    given: Mapping[Any, Any], known: tuple[str, ...], method: Method, where: str = ""
) -> None:
    """Raise `RecipeError` for a key that is not one of its level; ``where``: whose keys."""
    for key in given:
        if key not in known:
            said = misplaced(str(key), known, method)
            raise RecipeError(f"{where}: {said}" if where else said)


def misplaced(key: str, known: tuple[str, ...], method: Method) -> str:
    """Say where a key belongs that nobody reads where it is."""
    parameter, in_model = method.spellings.get(key), known in (ENTRY, SOURCE)
    if key in UNREAD:
        return f"{key}: {UNREAD[key]}"
    if parameter is not None and in_model and parameter.per_expert:
        return f"{key} belongs under parameters: of this entry, not beside model:"
    if parameter is not None:
        return f"{key} is a parameter of {method.name}; it belongs under the recipe's parameters:"
    if in_model and key in ("lora", "delta", "revision", "path"):
        return f"{key} is part of the model: write model: {{model: …, {key}: …}}"
    if key in ("layer_range", "sources"):
        return (
            f"{key} belongs to slices: write slices: [{{sources: [{{model: …, "
            "layer_range: [first, last + 1]}]}] in place of models:"
        )
    if known != TOP and key in TOP:
        return f"{key} belongs at the top of the recipe, not {LEVELS[known]}"
    hint = did_you_mean(key, (*known, *method.spellings))
    return f"no recipe key {key!r}{hint or '; there are ' + ', '.join(known)}"


LEVELS = {
    MODULE: "in one of its modules",
    SLICE: "in one of its slices",
    ENTRY: "beside model:",
    SOURCE: "beside model:",
}


def scope(given: Any, method: Method, where: str = "parameters") -> dict[str, Any]:
    """Return what stands under a ``parameters:``, or an error if it is no mapping."""
    if not isinstance(given or {}, Mapping):
        raise RecipeError(f"{where} is a mapping from name to value; got {given!r}")
    found = {str(key): value for key, value in (given or {}).items()}
    for key in found:
        if key in TOP and key not in method.spellings:
            raise RecipeError(f"{key} belongs at the top of the recipe, not under parameters:")
    return found
