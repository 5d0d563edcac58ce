"""Warn of merges that load but may not do what their models do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from merge_plugins.errors import MergeWarning
from merge_plugins.recipe import Recipe, Reference
from merge_plugins.sources import Source
from merge_plugins.tokenizer import generation_config, tokenizer_folder
from merge_plugins.tokenizer.vocabulary import vocabulary
from merge_plugins.weights.files import read_json, text_config

FUNCTION = re.compile(
    r"model_type|rope|rotary|theta|norm.*eps|eps$|epsilon|sliding_window|layer_types|hidden_act"
    r"|activation|scal(e|ar|ing)|multiplier|softcap|attention_bias|parallel_residual|^alibi"
)
"""Keys of a config that change what a model computes from its weights."""
LONGEST = 100
"""Characters of a key that these patterns are tried on."""
NOT = re.compile(r"initiali[sz]er|init_|_scale_init|dropout|quantization")


def warn_of_functions(recipe: Recipe, sources: Mapping[Reference, Source]) -> None:
    """Warn of models that compute something else from their weights than the donor does."""
    donor = sources[recipe.donor]
    for ref, source in sources.items():
        found = {} if source is donor else _differences(donor, source)
        if found:
            shown = ", ".join(f"{key} {a!r} and {b!r}" for key, (a, b) in found.items())
            warnings.warn(
                f"{donor.ref} and {ref} compute different functions: {shown}. The merge computes "
                f"as {donor.ref} does; weights tuned for the other may not work there",
                MergeWarning,
                stacklevel=3,
            )


def warn_of_stops(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Warn of another model's tokenizer whose end of turn generation does not stop at."""
    if recipe.tokenizer_donor == recipe.generation_donor:
        return  # as that model does it alone
    folder = tokenizer_folder(recipe)
    file = folder / "tokenizer_config.json"
    token = read_json(file).get("eos_token") if file.is_file() else None
    token = token.get("content") if isinstance(token, Mapping) else token
    tokens = vocabulary(folder) if isinstance(token, str) else {}
    stops = (generation_config(recipe) or {}).get("eos_token_id")
    stops = text_config(config).get("eos_token_id") if stops is None else stops
    stops = stops if isinstance(stops, list) else [stops]
    if (
        isinstance(token, str)
        and token in tokens
        and stops != [None]
        and tokens[token] not in stops
    ):
        warnings.warn(
            f"the tokenizer's eos_token is {token!r}, token {tokens[token]}, but generation stops "
            f"only at {', '.join(map(str, stops))}: answers may run to the length limit. Set "
            "generation_config: to a model that stops there",
            MergeWarning,
            stacklevel=3,
        )


def _function(config: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings of a config, or of its text part, that change what is computed."""
    own = config.get("text_config")
    text = {**config, **(own if isinstance(own, Mapping) else {})}
    keys = [key for key in text if len(key) <= LONGEST]
    return {key: text[key] for key in keys if FUNCTION.search(key) and not NOT.search(key)}


def _differences(one: Source, other: Source) -> dict[str, tuple[Any, Any]]:
    """List such settings in which two models differ, completed by the defaults of their classes."""
    if _function(one.config) == _function(other.config):
        return {}
    from merge_plugins.hf.rehearsal import text_written_out  # seconds: imports transformers

    first, second = (
        _function(text_written_out(each.config, each.path / "config.json")) for each in (one, other)
    )
    keys = sorted(first.keys() | second.keys(), key=lambda key: (key != "model_type", key))
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
