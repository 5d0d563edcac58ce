"""Compute what experts' branches of a parameter add to a module's output, or to the parameter.

That is the sum over experts t of w[row, t] * (branch_t applied to the input), for each row of a
batch. Low-rank branches of all experts together take two thin matrix products, whose middle columns
are multiplied by their experts' weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, linear
from transformers.pytorch_utils import Conv1D

from merge_plugins.api import Branch, LowRank, Product
from merge_plugins.errors import MergeError

Stacked: TypeAlias = tuple[Tensor, ...]
"""(branches [N, *shape],), or (up [m, R], down [R, n], expert of each column [R]); of products, the
shared factors (up, down), then (up, down, expert) of the change of up and of that of down."""
Apply: TypeAlias = Callable[[Any, Stacked, Tensor, Tensor], Tensor]
"""From (module, branches, input, weights [rows, N]) to the addition to the module's output."""


def stacked(module: nn.Module, branches: Sequence[Branch]) -> Stacked:
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


def applying(module: nn.Module, key: str) -> Apply | None:
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


def change(module: nn.Module, held: Stacked, weights: Tensor) -> Tensor:
    """Compute the change of the parameter itself for one request: [*shape]; ``weights``: [N]."""
    if len(held) == 1:
        added: Tensor = torch.tensordot(weights, held[0], dims=1)
    else:
        up, down, expert = held
        added = (up * weights[expert]) @ down
    return added.T if isinstance(module, Conv1D) and added.ndim == 2 else added
