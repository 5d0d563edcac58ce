"""Add experts' branches to the modules of a live model, weighed for each row of a batch.

A hook on a module adds what `merge_plugins.routing.branches` computes to its output, so that no
weight is rewritten.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from merge_plugins.api import Branch
from merge_plugins.errors import MergeError, MismatchError
from merge_plugins.routing.branches import Apply, Stacked, applying, stacked
from merge_plugins.weights.spelling import with_or_without

Owner: TypeAlias = tuple[nn.Module, str]
"""A module and the name of one of its parameters."""
SHARED_ONLY = (
    "Leave it to the shared expert: mask_rate: [{filter: <part of its name>, value: 1}, "
    "{value: 0.9}]"
)


@dataclass
class Current(threading.local):
    """Hold the expert weights of the requests that this thread runs.

    Harnesses such as HELM generate from several threads at once on one model.
    """

    weights: Tensor | None = None
    """Of the current forward pass: float32 [requests, N]; None: outside of one."""
    held: Tensor | None = None
    """Used for every forward pass of a block: float32 [1 or requests, N]; None: outside of one."""
    tokens: tuple[Tensor, Tensor] | None = None
    """Of a pass in which requests lie one after another in one row: each token's weights [tokens,
    N], and those of the tokens whose logits are computed; None: of any other."""
    only_shared: bool = False
    """Run the shared expert alone, to compute features."""
    within: nn.Module | None = None
    """The module whose call decided the weights; None: outside of one."""

    def __reduce__(self) -> tuple[type[Current], tuple[()]]:
        """Copy the model of a `Current` without what any thread holds."""
        return Current, ()

    def of_tokens(self, n_tokens: int) -> Tensor:
        """Match weights to the tokens of a module's input: [n_tokens, N]."""
        assert self.tokens is not None
        return next(each for each in self.tokens if len(each) == n_tokens)

    def rows(self, x: Tensor) -> Tensor:
        """Match weights to the rows of a module's input ``x``: [rows, N], or 1 row for all.

        The rows of ``x`` are one for all requests (positions), one per request, or the tokens of
        each request in turn.
        """
        if self.weights is None:
            raise MergeError(
                "a routed merge does not know which request this is: call the model or its base "
                "model, not one of their parts, or hold weights with model.routed(weights)"
            )
        weights, n = self.weights.to(x.device), x.shape[0]
        if n in (1, len(weights)) or len(weights) == 1:
            return weights
        if n % len(weights):
            raise MergeError(f"a module has {n} rows of input for {len(weights)} requests")
        return weights.repeat_interleave(n // len(weights), dim=0)


def owners(model: Any, names: Iterable[str], routed: Collection[str]) -> dict[str, list[Owner]]:
    """Find the modules that hold the parameter of each checkpoint name.

    Several for a tied parameter, none if the model has no such parameter. Raises `MismatchError`
    if one of the ``routed`` names has none while parameters are left over, since loading then
    renames or fuses weights, and if a module is of an unsupported kind, in the head or in a model
    that generates: encoders can run requests apart.
    """
    rewritable = () if model.can_generate() else {*model.base_model.modules()}
    holders: dict[int, list[Owner]] = {}
    named: dict[str, int] = {}
    for path, module in model.named_modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                holders.setdefault(id(weight), []).append((module, key))
                named[f"{path}.{key}" if path else key] = id(weight)
    prefix = getattr(model, "base_model_prefix", "")
    owned: dict[str, list[Owner]] = {}
    for name in names:
        own = with_or_without(prefix, name, named)
        key = 0 if own is None else named[own]
        owned[name] = holders.pop(key, [])  # a tied weight stored twice is loaded once
    for name in routed:
        if holders and not owned[name]:
            left = next(key for key, weight in named.items() if weight in holders)
            raise MismatchError(
                f"{type(model).__name__} makes {left} of weights stored under other names, such "
                f"as {name}, which cannot be weighed per request. {SHARED_ONLY}"
            )
        for module, key in owned[name]:
            weighed = module in rewritable or applying(module, key) is not None
            if re.search(r"\bexperts\.\d", name) or not weighed:
                raise MismatchError(
                    f"{name}: {type(module).__name__} cannot weigh it per request. {SHARED_ONLY}"
                )
    return {name: owned[name] for name in routed}


def attach(
    current: Current,
    modules: Sequence[Owner],
    branches: Sequence[Branch],
    ran: Collection[nn.Module],
) -> list[Owner]:
    """Hook branches to modules, in the dtype and on the device of the module's own weight.

    Returns the parameters that no hook can add to: of a module that is of no supported kind, or not
    among those that ``ran``, so that others read its parameter. They hold their branches, too.
    """
    rewritten = []
    for module, key in modules:
        weight = module._parameters[key]
        if weight is None or weight.is_meta:
            raise MergeError(
                f"{key} of {type(module).__name__} is not in memory: a routed merge does not go "
                "with offloading; use a device_map that holds the whole model"
            )
        held = stacked(module, branches)
        if not any(part.any() for part in held if part.is_floating_point()):
            continue  # all experts' branches are zero
        dtypes = (weight.dtype if part.is_floating_point() else part.dtype for part in held)
        moved = [part.to(weight.device, dtype) for part, dtype in zip(held, dtypes, strict=True)]
        if not _hold(current, (module, key), moved, is_hooked=module in ran):
            rewritten.append((module, key))
    return rewritten


def share(
    source: nn.Module, rewritten: Collection[Owner], current: Current, target: nn.Module
) -> list[Owner]:
    """Attach the branches of a module's parts to the parts of another, as `attach` did."""
    parts, others = dict(target.named_modules()), []
    for path, module in source.named_modules():
        for key in module._parameters:
            held, owner = branches_of(module, key), (parts[path], key)
            is_hooked = (module, key) not in rewritten
            if held and not _hold(current, owner, held, is_hooked=is_hooked):
                others.append(owner)
    return others


def branches_of(module: nn.Module, key: str) -> Stacked:
    """Return the branches attached to a parameter; none, if there are none."""
    return tuple(map(module.get_buffer, _buffers(module, key)))


def _buffers(module: nn.Module, key: str) -> list[str]:
    return [name for name in module._buffers if name.startswith(f"_{key}_branches_")]


def _hold(current: Current, owner: Owner, held: Sequence[Tensor], *, is_hooked: bool) -> bool:
    """Keep branches beside their parameter; returns whether a hook adds them."""
    module, key = owner
    for i, tensor in enumerate(held):
        module.register_buffer(f"_{key}_branches_{i}", tensor, persistent=False)
    apply = applying(module, key) if is_hooked else None
    if apply is not None:
        names = _buffers(module, key)
        module.register_forward_hook(partial(_add, current, apply, names), with_kwargs=True)
    return apply is not None


def _add(
    current: Current,
    apply: Apply,
    names: Sequence[str],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Tensor,
) -> Tensor | None:
    if current.only_shared:
        return None
    x = args[0] if args else next(iter(kwargs.values()))
    held = tuple(module.get_buffer(name) for name in names)
    if current.tokens is None or x.shape[0] != 1:
        added = apply(module, held, x, current.rows(x).to(held[0].dtype))
    else:  # each token is a row of its own
        weights = current.of_tokens(x.shape[1]).to(held[0])
        added = apply(module, held, x.transpose(0, 1), weights).transpose(0, 1)
    return output + added.to(output.dtype)
