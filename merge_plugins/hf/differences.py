"""Find settings by which models with equal weights compute different functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from merge_plugins.hf.rehearsal import config_of

FUNCTION = re.compile(
    r"model_type|rope|rotary|theta|norm.*eps|eps$|epsilon|sliding_window|layer_types|hidden_act"
    r"|activation|scal(e|ar|ing)|multiplier|softcap|attention_bias|parallel_residual|^alibi"
)
"""Keys of a config that change what a model computes from its weights."""
NOT = re.compile(r"initiali[sz]er|init_|_scale_init|dropout|quantization")


def function_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings of a config, or of its text part, that change what is computed."""
    text = {**config, **(config.get("text_config") or {})}
    return {key: text[key] for key in text if FUNCTION.search(key) and not NOT.search(key)}


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], where: tuple[object, object]
) -> dict[str, tuple[Any, Any]]:
    """List the settings in which two configs differ, completed by the defaults of their classes.

    ``where``: the files, for messages about values that a class refuses.
    """
    full = [_written_out(config, file) for config, file in zip((one, other), where, strict=True)]
    first, second = map(function_of, full)
    keys = sorted(first.keys() | second.keys(), key=lambda key: (key != "model_type", key))
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _written_out(config: Mapping[str, Any], file: object) -> Mapping[str, Any]:
    live = config_of(config, file)
    return config if live is None else dict(live.get_text_config().to_dict())
