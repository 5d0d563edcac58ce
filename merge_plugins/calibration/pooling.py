"""Pool the states of a text's tokens into one vector, in the modes of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def pooled(states: Tensor, mask: Tensor, modes: Sequence[str]) -> Tensor:
    """Pool states [batch, tokens, width] into [batch, width x modes], float32.

    ``mask``: 1 where there is a token, 0 in the padding on the right. ``modes``: names in
    `POOLING`; others, such as ``normalize``, are left to the caller.
    """
    states, weights = states.float(), mask.unsqueeze(-1).float()
    return torch.cat([POOLING[mode](states, weights) for mode in modes if mode in POOLING], dim=-1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1)


def _sqrt_mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average with weights 1, 2, 3, ... [Muennighoff 2022, arXiv:2202.08904]."""
    return _mean(states, mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)[:, None])


def _last(states: Tensor, mask: Tensor) -> Tensor:
    last = mask.sum(1, keepdim=True).long() - 1
    return states.gather(1, last.expand(-1, 1, states.shape[-1])).squeeze(1)


POOLING: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda states, mask: states[:, 0],
    "max": lambda states, mask: states.masked_fill(mask == 0, -torch.inf).amax(1),
    "mean": _mean,
    "mean_sqrt_len_tokens": _sqrt_mean,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
