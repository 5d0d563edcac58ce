"""What looks like a model and has no weights that could be averaged; told by names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from merge_plugins.errors import CheckpointError

PACKED = re.compile(
    r"\.(qweight|qzeros|SCB|absmax|quant_map|quant_state\.\w+|weight_packed|weight_scale(_inv)?)$"
)
"""Ends of the names of tensors that hold packed integers, or what unpacks them."""


def refuse(ref: str, names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for a quantised model, or an adapter given as one."""
    names = list(names)
    packed = next(filter(PACKED.search, names), None)
    if packed or config.get("quantization_config"):
        raise quantized(ref, packed or "quantization_config in its config.json")
    adapter = next((name for name in names if ".lora_A" in name), None)
    if adapter:
        raise CheckpointError(
            f"{ref} is a LoRA adapter, it has {adapter}, not a model. Name the model it was "
            f"trained on too: {{model: <model>, lora: <its folder>}}"
        )


def quantized(ref: str, sign: str) -> CheckpointError:
    """Return the error for a quantised model; ``sign``: how one sees that it is."""
    return CheckpointError(
        f"{ref} is quantised ({sign}); averaging packed integers means nothing. "
        "Name the full-precision model and quantise the merge while loading."
    )
