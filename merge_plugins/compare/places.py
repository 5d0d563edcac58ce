"""Say where a weight is: its layer, and its module's type, which recurs in every layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from merge_plugins.planning.names import layer_of, stack_of
from merge_plugins.weights.spelling import NUMBER


class Spot(NamedTuple):
    """A row and a column of a heat map."""

    layer: int | None
    """None: outside any layer."""
    module: str
    """Without the layer's number; ``*`` stands for other numbers, as those of experts."""


def spots(names: Collection[str]) -> dict[str, Spot]:
    """Place weights by name; modules of several stacks of layers keep the name of theirs."""
    stacks = {stack_of(name) for name in names} - {""}
    return {name: _spot(name, keep_stack=len(stacks) > 1) for name in names}


def _spot(name: str, *, keep_stack: bool) -> Spot:
    layer, stack = layer_of(name), stack_of(name)
    module = name.removesuffix(".weight")
    if layer is None:
        return Spot(None, module.removeprefix("model."))
    inner = module.removeprefix(stack).partition(".")[2]
    inner = NUMBER.sub("*", f".{inner}.").strip(".") or "weight"
    return Spot(layer, f"{stack}{inner}" if keep_stack else inner)
