"""EMR-Merging: one elected task vector, with a mask and a rescaler for each task."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Branch, Gate, PerExpert, PerExpertText, Slot, Sources
from merge_plugins.ops.arithmetic import added
from merge_plugins.plugins import hookimpl
from merge_plugins.routing.gates import (
    RouterName,
    gate_of,
    learns,
    router_field,
    router_weight_field,
    tasks_field,
    top_k_field,
)


def masked(slot: Slot) -> list[Tensor]:
    """Elect one task vector and apply each task's mask to it: N of float32 [*shape].

    Each entry has the sign of the sum of the task vectors, and the largest magnitude among those
    with that sign. A task's mask keeps the entries whose elected sign agrees with its own.
    """
    deltas = slot.deltas()
    sign = added(deltas).sign_()
    agreeing = [delta.mul_(sign).relu_() for delta in deltas]
    unified = functools.reduce(torch.maximum, agreeing) * sign
    return [one.sign_().mul_(unified) for one in agreeing]


def rescaled(slot: Slot, rescalers: Sequence[float], dtype: torch.dtype) -> list[Branch]:
    """Multiply each task's masked task vector by its rescaler: N of [*shape], rounded once."""
    parts = [torch.empty_like(slot.base, dtype=dtype) for _ in rescalers]

    def fill(block: Slot) -> None:
        for part, kept, r in zip(parts, masked(block), rescalers, strict=True):
            block.box.of(part).copy_(kept.mul_(r))

    slot.weight().map_blocks(fill)
    return list(parts)


@dataclass(frozen=True)
class EmrMerging:
    """Elect, mask and rescale, with the task of each request known [Huang et al. 2024].

    The model of task i is base + r_i M_i t. Each entry of t has the sign of the sum of the task
    vectors and the largest magnitude of those with that sign; M_i keeps the entries where t_i
    agrees; r_i, one number for the whole model, restores the L1 norm of t_i [alg. 1]. The router
    gets the task (oracle, as in the paper) or predicts it, so the merge cannot be saved as a
    checkpoint. In memory it takes one dense task vector per expert besides the base.
    """

    router: RouterName = router_field("oracle")
    router_weight: PerExpert = router_weight_field()
    tasks: PerExpertText = tasks_field()
    top_k: int | None = top_k_field()
    granularity = ELEMENT

    def __post_init__(self) -> None:
        _ = self.gate  # raises for parameters that no router accepts

    @property
    def gate(self) -> Gate:
        """Router of requests, before it has learned from examples."""
        return gate_of(self.router, self.router_weight, self.tasks, self.top_k)

    def prepare(self, sources: Sources) -> _Rescaled:
        """Compute each task's rescaler over the whole model: L1 norm of t_i over that of M_i t."""

        def norms(block: Slot) -> Tensor:
            own, kept = block.deltas(), torch.stack(masked(block))
            sums = [
                x.unsqueeze(-1).abs().flatten(1).sum(1, dtype=torch.float64) for x in (own, kept)
            ]
            return torch.stack(sums)

        n_experts = len(self.router_weight)
        total = torch.zeros(2, n_experts, dtype=torch.float64)
        for weight in sources.slots():
            for sums in weight.map_blocks(norms) if math.prod(weight.shape) else ():
                total += sums
        own, kept = total
        return _Rescaled(self, tuple(torch.where(kept > 0, own / kept, 1.0).tolist()))

    def __call__(self, slot: Slot) -> Tensor:
        """Return the base, the part shared by all tasks: float32 [*shape]."""
        return slot.base.to(torch.float32, copy=True)

    def branch_numel(self, shape: Sequence[int]) -> int:
        """Count the elements of one task's branch: all of the weight's."""
        return math.prod(shape)

    def branches(self, slot: Slot, shared: Tensor) -> list[Branch]:
        """Return each task's masked task vector, not rescaled: see `_Rescaled`."""
        return rescaled(slot, (1.0,) * len(slot.experts), shared.dtype)


@dataclass(frozen=True)
class _Rescaled:
    """EMR-Merging with the rescaler of each task computed."""

    method: EmrMerging
    rescalers: tuple[float, ...]

    @property
    def gate(self) -> Gate:
        return self.method.gate

    def __call__(self, slot: Slot) -> Tensor:
        return self.method(slot)

    def branch_numel(self, shape: Sequence[int]) -> int:
        return self.method.branch_numel(shape)

    def branches(self, slot: Slot, shared: Tensor) -> list[Branch]:
        return rescaled(slot, self.rescalers, shared.dtype)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Huang et al. 2024, arXiv:2405.17461"
    facts = {"needs_base": True, "paper": paper}
    register("emr", EmrMerging, needs_data=learns, **facts)
