"""Consensus merging: keep the entries that more than one task needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, PerExpert, Slot, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.methods._fields import lambda_field
from merge_plugins.ops.arithmetic import added
from merge_plugins.plugins import hookimpl


@dataclass(frozen=True)
class Consensus:
    """Sum of task vectors where several experts agree that it matters [Wang et al. 2024].

    With t the sum of the task vectors t_i, the TALL mask of task i holds where
    |t_i| >= mask_lambda_i |t - t_i|. The merge is base + lambda t where ``threshold`` masks hold,
    and the base elsewhere. The paper tunes mask_lambda among 0.2, 0.3, ..., 0.6 on validation data.
    """

    mask_lambda: PerExpert = parameter(
        0.4,
        doc="strictness of each task's mask, 0 or more; a larger value selects fewer entries",
        alias=("tall_mask_lambda",),
    )
    threshold: int = parameter(
        2,
        doc="number of masks that must hold for an entry to be kept, 0 or more; 2 drops entries of "
        "one task alone (selfish) and of none (catastrophic)",
        alias=("prun_thre_k",),
    )
    lambda_: float = lambda_field()
    granularity = ELEMENT

    def __post_init__(self) -> None:
        if not min(self.mask_lambda) >= 0:
            raise ParameterError(f"mask_lambda is 0 or more; got {list(self.mask_lambda)}")
        n_experts = len(self.mask_lambda)
        if not 0 <= self.threshold <= n_experts:
            raise ParameterError(
                f"threshold is a number of masks, from 0 to that of the models, {n_experts}; "
                f"got {self.threshold}"
            )

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * masked sum of task vectors: float32 [*shape]."""
        deltas = slot.deltas()
        total = added(deltas)
        masks = (
            delta.abs() >= (total - delta).abs_().mul_(strictness)
            for delta, strictness in zip(deltas, self.mask_lambda, strict=True)
        )
        votes = functools.reduce(Tensor.add_, (mask.to(torch.int16) for mask in masks))
        return total.mul_(votes >= self.threshold).mul_(self.lambda_).add_(slot.base)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Wang et al. 2024, arXiv:2405.07813"
    register("consensus", Consensus, needs_base=True, paper=paper)
