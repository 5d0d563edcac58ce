"""Merge linear layers as matrices, one at a time, and average all other weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from merge_plugins.api import Slot, Sources
from merge_plugins.arithmetic import weighted_sum

logger = logging.getLogger(__name__)


class Weight(Protocol):
    """A weight of a model, in memory or not: a slot, or a plan's tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape."""

    @property
    def input_dim(self) -> int | None:
        """The dimension that runs over its layer's inputs: see `Slot.input_dim`."""


class Deltas(Protocol):
    """Task vectors of one matrix, made when they are looked at: at most one need be held."""

    def __len__(self) -> int:
        """How many experts there are."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yield expert minus base, inputs last: float64 [outputs, inputs], the caller's own."""


class _Deltas:
    def __init__(self, base: Tensor, experts: Sequence[Tensor]) -> None:
        self._base, self._experts = base, experts

    def __len__(self) -> int:
        return len(self._experts)

    def __iter__(self) -> Iterator[Tensor]:
        return (expert.double().sub_(self._base) for expert in self._experts)


def holds_matrices(weight: Weight) -> bool:
    """Whether a weight is of linear layers, one or a stack: no embedding, convolution or vector."""
    return weight.input_dim in (-1, -2) and len(weight.shape) > 1 and math.prod(weight.shape) > 0


def by_matrix(slot: Slot, scale: float, merge: Callable[[Deltas], Tensor]) -> Tensor:
    """Return base + scale * merged task vector of a whole weight: float32 [*shape].

    ``merge`` has one matrix at a time, inputs last as in `torch.nn.Linear`, and returns its like;
    weights that are no matrices of linear layers get the mean task vector.
    """
    if not holds_matrices(slot):
        return averaged(slot, scale)

    def stacked(tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1, *slot.shape[-2:])
        return flat if slot.input_dim == -1 else flat.mT

    result = torch.empty(slot.shape, dtype=torch.float32, device=slot.base.device)
    inputs = zip(stacked(slot.base), *map(stacked, slot.experts), strict=True)
    for target, (base, *experts) in zip(stacked(result), inputs, strict=True):
        target.copy_(merge(_Deltas(base, experts)).mul_(scale).add_(base))
    return result


def averaged(slot: Slot, scale: float) -> Tensor:
    """Return base + scale * mean task vector: float32 [*shape], without holding a task vector."""
    share = scale / len(slot.experts)
    return weighted_sum((slot.base, *slot.experts), (1 - scale, *[share] * len(slot.experts)))


def announce(
    sources: Sources, method: str, what: str, cost: Callable[[int, int, int], float]
) -> None:
    """Log how many matrices will be worked on, and how much work that is.

    ``cost(outputs, inputs, experts)``: floating-point operations, in float64, of one matrix.
    """
    n_matrices, n_averaged, total, largest = 0, 0, 0.0, 0
    for slot in sources.slots():
        if not holds_matrices(slot):
            n_averaged += 1
            continue
        outputs, inputs = slot.shape[-2:] if slot.input_dim == -1 else slot.shape[:-3:-1]
        n = math.prod(slot.shape[:-2])
        n_matrices += n
        largest = max(largest, outputs * inputs)
        total += n * cost(outputs, inputs, len(slot.experts))
    logger.info(
        "%s: %s of %d matrices, one at a time; about %.3g TFLOP in float64 (%.3g minutes at 100 "
        "GFLOP/s), matrices of up to %.3g GB; the other %d weights are averaged",
        *(method, what, n_matrices, total / 1e12, total / 1e11 / 60),
        *(8 * largest / 1e9, n_averaged),
    )
