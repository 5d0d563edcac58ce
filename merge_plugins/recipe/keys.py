"""Check the keys of a recipe, level by level.

Unlike in mergekit, an unknown key is an error, and so is a key at a level where it has no effect.
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
    "pooling",
)
"""Keys of the whole recipe."""
MODULE = ("models", "slices", "parameters")
"""Keys of an entry of ``modules``."""
SLICE = ("sources", "base_model", "parameters")
"""Keys of an entry of ``slices``."""
ENTRY = ("model", "base_model", "parameters", "data", "task")
"""Keys of an entry of ``models``."""
SOURCE = ("model", "base_model", "parameters", "data", "layer_range")
"""Keys of an entry of a slice's ``sources``."""
SHORT = {"method": "merge_method", "base": "base_model", "weights": "weight"}
"""Words of the short form that have another name in a file."""
UNREAD = {
    "experts": "mixtures of experts are not built",
    "residual_weight": "mergekit reads it and does nothing with it; delete it",
    "input_model_parameters": "no mergekit reads it; write parameters: in the model's entry",
    "plugin": "no recipe can have code run; whoever uses it says --plugin FILE, or plugin=FILE "
    "in model_args",
    "override_architecture": "the architecture is that of the model; delete it",
}
"""Keys, mergekit's first, that are refused, with the reason."""


def check_keys(
    given: Mapping[Any, Any], known: tuple[str, ...], method: Method, where: str = ""
) -> None:
    """Raise `RecipeError` for a key that is not in ``known``; ``where`` begins the message."""
    for key in given:
        if key not in known:
            message = misplaced(str(key), known, method)
            raise RecipeError(f"{where}: {message}" if where else message)


def misplaced(key: str, known: tuple[str, ...], method: Method) -> str:
    """Explain, for an error message, where an unknown or misplaced key belongs."""
    parameter, in_model = method.spellings.get(key), known in (ENTRY, SOURCE)
    if key in SHORT and parameter is None:
        entry = "parameters: {weight: …} in the entry of each model"
        own = entry if key == "weights" else f"{SHORT[key]}:"
        return f"{key} is a word of model_args; in a file write {own}"
    if key in UNREAD:
        return f"{key}: {UNREAD[key]}"
    if parameter is not None and in_model and parameter.per_expert:
        return f"{key} belongs under parameters: of this entry, not beside model:"
    if parameter is not None:
        return f"{key} is a parameter of {method.name}; it belongs under the recipe's parameters:"
    if in_model and key in ("lora", "delta", "revision", "path"):
        first = "" if key == "path" else "model: …, "
        return f"{key} is part of the model: write model: {{{first}{key}: …}}"
    if key in ("tokens", "pad_to_multiple_of"):
        return f"{key} belongs to the tokenizer: write tokenizer: {{source: …, {key}: …}}"
    if key in ("layer_range", "sources"):
        return (
            f"{key} belongs to slices: write slices: [{{sources: [{{model: …, "
            "layer_range: [first, last + 1]}]}] in place of models:"
        )
    if key == "task":
        return "task belongs beside model:, in the entry of the model whose head answers it"
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
"""Description of each level in error messages."""


def scope(given: Any, method: Method, where: str = "parameters") -> dict[str, Any]:
    """Read the mapping under ``parameters:``, or raise `RecipeError` if it is none."""
    if not isinstance(given or {}, Mapping):
        raise RecipeError(f"{where} is a mapping from name to value; got {given!r}")
    parameters = {str(key): value for key, value in (given or {}).items()}
    for key in parameters:
        if key in TOP and key not in method.spellings:
            raise RecipeError(f"{key} belongs at the top of the recipe, not under parameters:")
    return parameters
