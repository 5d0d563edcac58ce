"""Add experts' branches to the modules of a live model, weighed for each row of a batch.

A hook on a module adds sum_t w[row, t] * (branch_t applied to the input) to its output, so that no
weight is rewritten. Low-rank branches of all experts together take two thin matrix products, whose
middle columns are multiplied by their experts' weights.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, linear
from transformers.pytorch_utils import Conv1D

from merge_plugins.api import Branch, LowRank, Product
from merge_plugins.errors import MergeError, MismatchError
from merge_plugins.weights.spelling import with_or_without

Owner: TypeAlias = tuple[nn.Module, str]
"""A module and the name of one of its parameters."""
Stacked: TypeAlias = tuple[Tensor, ...]
"""(branches [N, *shape],), or (up [m, R], down [R, n], expert of each column [R]); of products, the
shared factors (up, down), then (up, down, expert) of the change of up and of that of down."""
Apply: TypeAlias = Callable[[Any, Stacked, Tensor, Tensor], Tensor]
"""From (module, branches, input, weights [rows, N]) to the addition to the module's output."""
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
    only_shared: bool = False
    """Run the shared expert alone, to compute features."""

    def __reduce__(self) -> tuple[type[Current], tuple[()]]:
        """Copy the model of a `Current` without what any thread holds."""
        return Current, ()

    def rows(self, x: Tensor) -> Tensor:
        """Match weights to the rows of a module's input ``x``: [rows, N], or 1 row for all.

        The rows of ``x`` are one for all requests (positions), one per request, or the tokens of
        each request in turn.
        """
        if self.weights is None:
            raise MergeError(
                "a routed merge does not know which request this is: call the model itself, not "
                "one of its parts, or hold weights with model.routed(weights)"
            )
        weights, n = self.weights.to(x.device), x.shape[0]
        if n in (1, len(weights)) or len(weights) == 1:
            return weights
        if n % len(weights):
            raise MergeError(f"a module has {n} rows of input for {len(weights)} requests")
        return weights.repeat_interleave(n // len(weights), dim=0)


def owners(
    model: nn.Module, names: Iterable[str], routed: Collection[str]
) -> dict[str, list[Owner]]:
    """Find the modules that hold the parameter of each checkpoint name.

    Several for a tied parameter, none if the model has no such parameter. Raises `MismatchError`
    if one of the ``routed`` names has none while parameters are left over, since loading then
    renames or fuses weights, and if a module is of an unsupported kind.
    """
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
            if re.search(r"\bexperts\.\d", name) or _apply(module, key) is None:
                raise MismatchError(
                    f"{name}: {type(module).__name__} cannot weigh it per request. {SHARED_ONLY}"
                )
    return {name: owned[name] for name in routed}


def attach(current: Current, modules: Sequence[Owner], branches: Sequence[Branch]) -> None:
    """Hook branches to modules, in the dtype and on the device of the module's own weight."""
    for module, key in modules:
        weight = module._parameters[key]
        apply = _apply(module, key)
        if weight is None or apply is None or weight.is_meta:
            raise MergeError(
                f"{key} of {type(module).__name__} is not in memory: a routed merge does not go "
                "with offloading; use a device_map that holds the whole model"
            )
        stacked = _stacked(module, branches)
        if not any(part.any() for part in stacked if part.is_floating_point()):
            continue  # all experts' branches are zero
        names = [f"_{key}_branches_{i}" for i in range(len(stacked))]
        for name, tensor in zip(names, stacked, strict=True):
            dtype = weight.dtype if tensor.is_floating_point() else tensor.dtype
            module.register_buffer(name, tensor.to(weight.device, dtype), persistent=False)
        module.register_forward_hook(partial(_add, current, apply, names), with_kwargs=True)


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
    weights = current.rows(x).to(held[0].dtype)
    added = apply(module, held, x, weights)
    return output + added.to(output.dtype)


def _stacked(module: nn.Module, branches: Sequence[Branch]) -> Stacked:
    """Stack all experts' branches, matrices as (out, in)."""
    turned = isinstance(module, Conv1D)
    products = [branch for branch in branches if isinstance(branch, Product)]
    if products:
        if not isinstance(module, nn.Linear | Conv1D):
            raise MergeError(f"lora_space: separate knows no {type(module).__name__}")
        shared = products[0].shared
        up, down = [product.up for product in products], [product.down for product in products]
        if turned:
            return shared.down.T, shared.up.T, *_side_by_side(down, True), *_side_by_side(up, True)
        return shared.up, shared.down, *_side_by_side(up, False), *_side_by_side(down, False)
    low_rank = [branch for branch in branches if isinstance(branch, LowRank)]
    if low_rank:
        return _side_by_side(low_rank, turned)
    whole = torch.stack([branch for branch in branches if isinstance(branch, Tensor)])
    return (whole.mT.contiguous() if turned and whole.ndim == 3 else whole,)


def _side_by_side(low_rank: Sequence[LowRank], turned: bool) -> Stacked:
    expert = torch.cat([torch.full((b.up.shape[1],), i) for i, b in enumerate(low_rank)])
    up, down = torch.cat([b.up for b in low_rank], 1), torch.cat([b.down for b in low_rank])
    return (down.T.contiguous(), up.T.contiguous(), expert) if turned else (up, down, expert)


def _apply(module: nn.Module, key: str) -> Apply | None:
    """Choose the function that applies branches of a module's parameter; None if unsupported.

    Forward functions are compared, not classes, since a subclass may override forward.
    """
    forward = type(module).forward
    if forward in (nn.Linear.forward, Conv1D.forward):
        return _matrix if key == "weight" else _bias
    if forward is nn.Embedding.forward or _is_scaled(module):
        return _lookup
    if forward is nn.LayerNorm.forward:
        return _normed if key == "weight" else _bias
    if "RMSNorm" in type(module).__name__ and [*module._parameters] == ["weight"]:
        return None if isinstance(module, nn.RMSNorm) else _affine_change
    return None


def _is_scaled(module: nn.Module) -> bool:
    """Whether a module is an embedding times a constant, as in Gemma."""
    scaled = type(module).__name__.endswith("ScaledWordEmbedding")
    return scaled and isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")


def _spread(weights: Tensor, n_dims: int) -> Tensor:
    """View [rows, R] as [rows, 1, ..., R] with ``n_dims`` dimensions."""
    return weights.view(len(weights), *[1] * (n_dims - 2), weights.shape[-1])


def _sum(parts: Iterable[Tensor], weights: Tensor) -> Tensor:
    """Sum N tensors [rows, ...], each row times its weight."""
    terms = (part * weights[:, i].view(-1, *[1] * (part.ndim - 1)) for i, part in enumerate(parts))
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _matrix(module: nn.Module, held: Stacked, x: Tensor, weights: Tensor) -> Tensor:
    x = x.to(held[0].dtype)
    if len(held) == 1:
        return _sum((linear(x, branch) for branch in held[0]), weights)
    if len(held) == 3:
        return _thin(held, x, weights)
    seen, change = linear(x, held[1]), _thin(held[5:], x, weights)
    return linear(change, held[0]) + _thin(held[2:5], seen + change, weights)


def _thin(held: Stacked, x: Tensor, weights: Tensor) -> Tensor:
    up, down, expert = held
    return linear(linear(x, down) * _spread(weights[:, expert], x.ndim), up)


def _lookup(module: nn.Module, held: Stacked, ids: Tensor, weights: Tensor) -> Tensor:
    if len(held) == 1:
        found = _sum((embedding(ids, branch) for branch in held[0]), weights)
    else:
        up, down, expert = held
        found = (embedding(ids, up) * _spread(weights[:, expert], ids.ndim + 1)) @ down
    return found * getattr(module, "embed_scale", 1)


def _bias(module: nn.Module, held: Stacked, x: Tensor, weights: Tensor) -> Tensor:
    return _spread(weights @ held[0], x.ndim)


def _normed(module: nn.LayerNorm, held: Stacked, x: Tensor, weights: Tensor) -> Tensor:
    normed = layer_norm(x, module.normalized_shape, eps=module.eps)
    return normed * _spread(weights @ held[0], x.ndim)


def _affine_change(module: nn.Module, held: Stacked, x: Tensor, weights: Tensor) -> Tensor:
    """Compute the change of a norm's output from that of its weight: the output is affine in it.

    Runs the norm with the change and with zero as its weight, and subtracts.
    """
    change = _spread(weights @ held[0], x.ndim)
    copies = [copy.copy(module) for _ in range(2)]  # shallow; forward is called without hooks
    for norm, weight in zip(copies, (change, torch.zeros_like(change)), strict=True):
        norm.__dict__["_parameters"] = {"weight": weight}
    forward = type(module).forward
    return forward(copies[0], x) - forward(copies[1], x)  # type: ignore[no-any-return]
