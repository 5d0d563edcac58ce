"""Run the requests of a batch apart, where a hook on each module cannot weigh them row by row.

DeBERTa projects its table of relative positions once for a whole batch, and reads that table
without calling its module. Requests of equal weights then run together, on parameters that are
written for them and restored afterwards, as the released code of Twin-Merging does for every one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from merge_plugins.routing.branches import change
from merge_plugins.routing.hooks import Current, Owner, branches_of


@torch.no_grad()
def modules_run(model: Any) -> set[nn.Module]:
    """Find the modules that an encoder calls to read a text; besides, the head's.

    All of them, if the model generates or reads something else.
    """
    every, inside = {*model.modules()}, {*model.base_model.modules()}
    if model.can_generate() or model.base_model.main_input_name != "input_ids":
        return every
    ran = every - inside
    handles = [m.register_forward_hook(lambda m, *_: ran.add(m)) for m in inside]
    try:
        model(input_ids=torch.ones(1, 2, dtype=torch.int64, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return ran


def rewritten_in(base: Any) -> Collection[Owner]:
    """List the parameters that a live base model writes for each request."""
    found: Collection[Owner] = getattr(base.forward, "rewritten", ())
    return found


def run_apart(base: Any, current: Current, rewritten: Collection[Owner]) -> None:
    """Make a live base model run requests of different weights apart, in place.

    It writes the parameters that no hook can add to; if there are none, it stays as it is.
    """
    if not rewritten:
        return
    forward, lock = base.forward, threading.RLock()

    @functools.wraps(forward)
    def apart(*args: Any, **kwargs: Any) -> Any:
        weights: Any = current.weights
        if current.only_shared or weights is None:
            with lock:  # another thread may write
                return forward(*args, **kwargs)
        distinct, group = weights.unique(dim=0, return_inverse=True)
        places = [(group == number).nonzero()[:, 0] for number in range(len(distinct))]
        outputs = []
        try:
            for row, place in zip(distinct, places, strict=True):
                own_args, own_kwargs = _selected((args, kwargs), place, len(weights))
                current.weights = row[None]
                with lock, _written(rewritten, row):
                    outputs.append(forward(*own_args, **own_kwargs))
        finally:
            current.weights = weights
        return _joined(outputs, torch.cat(places).argsort())

    apart.rewritten = rewritten  # type: ignore[attr-defined]
    base.forward = apart


@contextmanager
def _written(rewritten: Collection[Owner], weights: Tensor) -> Iterator[None]:
    """Write the parameters that no hook can add to for one request; ``weights``: [N]."""
    before = [(module, key, module._parameters[key]) for module, key in rewritten]
    try:
        for module, key, parameter in before:
            held = branches_of(module, key)
            own = weights.to(held[0].device, held[0].dtype)
            module._parameters[key] = parameter + change(module, held, own)  # type: ignore[assignment,operator]
        yield
    finally:
        for module, key, parameter in before:
            module._parameters[key] = parameter


def _selected(given: Any, place: Tensor, n_rows: int) -> Any:
    """Select rows of every tensor that has one for each request."""

    def select(tensor: Tensor) -> Tensor:
        has_rows = tensor.ndim > 0 and len(tensor) == n_rows
        return tensor[place.to(tensor.device)] if has_rows else tensor

    return tree_map_only(Tensor, select, given)


def _joined(outputs: list[Any], order: Tensor) -> Any:
    """Join the outputs for some requests each into that of the batch."""
    leaves, form = zip(*map(tree_flatten, outputs), strict=True)
    joined = [
        torch.cat(parts)[order.to(parts[0].device)] if isinstance(parts[0], Tensor) else parts[0]
        for parts in zip(*leaves, strict=True)
    ]
    return tree_unflatten(joined, form[0])
