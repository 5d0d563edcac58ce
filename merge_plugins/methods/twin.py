"""Twin-Merging: a shared expert, plus each expert's exclusive part, weighed for each request.

theta(x) = theta* + sum_t w_t(x) C(theta_t - theta*), where theta* is a static merge, C compresses
and w = softmax(router(x)) [Lu et al. 2024, "Twin-Merging: Dynamic Integration of Modular Expertise
in Model Merging", eq. 3-5].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merge_plugins.api import (
    ELEMENT,
    WHOLE,
    Branch,
    Gate,
    Granularity,
    Kernel,
    LowRank,
    Measures,
    PerExpert,
    PerExpertText,
    Prepares,
    Product,
    Slot,
    Sources,
    Weight,
    parameter,
)
from merge_plugins.errors import MismatchError, ParameterError
from merge_plugins.methods._fields import check_share
from merge_plugins.methods.averages import Average
from merge_plugins.methods.mergellm import Scope, TiesMerging
from merge_plugins.methods.task_vectors import TaskArithmetic
from merge_plugins.ops.arithmetic import keep_largest
from merge_plugins.ops.random import drop_at_random
from merge_plugins.ops.selection import cuts
from merge_plugins.ops.svd import truncated_svd
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

SharedMethod = Literal["task_arithmetic", "average_merging", "ties_merging", "base_model"]
Compression = Literal["svd", "magnitude", "bernoulli"]
FACTORWISE = ("task_arithmetic", "average_merging")
"""Shared methods that can merge adapters factor by factor."""


@dataclass(frozen=True)
class TwinMerging:
    """A static merge, plus each expert's compressed difference, weighed for each request [Lu 2024].

    The difference of a weight of one dimension (norms, biases) is not compressed. Under a filter,
    ``mask_rate: 1`` drops the differences of some weights, as the released code does with biases;
    0 keeps them whole, which suits classifiers. For a shared expert of another method, give a merge
    as base_model, with ``shared_method: base_model``.
    """

    shared_method: SharedMethod = parameter(
        "task_arithmetic", doc="method of the shared expert; base_model takes the base model itself"
    )
    scaling_coefficient: float = parameter(
        0.3, doc="task_arithmetic, ties_merging: factor on the shared expert's task vector"
    )
    param_value_mask_rate: float = parameter(0.8, doc="ties_merging: share trimmed, in [0, 1]")
    trim_scope: Scope = parameter("tensor", doc="ties_merging: rank within a weight or the model")
    mask_rate: float = parameter(
        0.9, doc="share of the ranks (svd) or entries dropped from each difference, in [0, 1]"
    )
    rank: int | None = parameter(None, doc="svd: number of ranks kept, in place of mask_rate")
    mask_strategy: Compression = parameter(
        "svd", doc="dropped from each difference: small singular values, or small or random entries"
    )
    router: RouterName = router_field("mlp")
    router_weight: PerExpert = router_weight_field()
    tasks: PerExpertText = tasks_field()
    lora_space: Literal["delta", "separate"] = parameter(
        "delta",
        doc="LoRA adapters: merge and compress their products (delta), or each factor separately, "
        "which is not the merge of the products but what the released code does",
    )
    top_k: int | None = top_k_field()

    def __post_init__(self) -> None:
        check_share("mask_rate", (self.mask_rate,))
        _ = self.shared, self.gate  # raise for parameters that no method or router accepts
        if self.rank is not None and self.rank < 1:
            raise ParameterError(f"rank is 1 or more; got {self.rank}")
        if self.rank is not None and self.mask_strategy != "svd":
            raise ParameterError(f"rank is for mask_strategy svd, not {self.mask_strategy}")
        if self.lora_space == "separate" and (
            self.mask_strategy != "svd" or self.shared_method not in FACTORWISE
        ):
            raise ParameterError(
                "lora_space: separate needs mask_strategy svd and a shared_method that is one of "
                f"{', '.join(FACTORWISE)}; change those, or leave lora_space out"
            )

    @property
    def granularity(self) -> Granularity:
        """WHOLE if the factors of adapters are merged separately, else ELEMENT."""
        return ELEMENT if self.lora_space == "delta" else WHOLE

    @property
    def shared(self) -> Kernel:
        """Method that merges the shared expert."""
        scale = self.scaling_coefficient
        if self.shared_method == "task_arithmetic":
            return TaskArithmetic(weight=(1.0,) * len(self.router_weight), lambda_=scale)
        if self.shared_method == "ties_merging":
            return TiesMerging(self.param_value_mask_rate, scale, self.trim_scope)
        return Average() if self.shared_method == "average_merging" else _base

    @property
    def gate(self) -> Gate:
        """Router of requests, before it has learned from examples."""
        return gate_of(self.router, self.router_weight, self.tasks, self.top_k)

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the measures of the shared expert's method."""
        return self.shared.measure(weight) if isinstance(self.shared, Measures) else {}

    def prepare(self, sources: Sources) -> Kernel | None:
        """Prepare the shared expert's method, if it reads the whole model."""
        return self.shared.prepare(sources) if isinstance(self.shared, Prepares) else None

    def __call__(self, slot: Slot) -> Tensor:
        """Return the shared expert: float32 [*shape]."""
        if self.lora_space == "delta":
            return self.shared(slot)
        factors = self._shared_factors(slot)
        return slot.base.float() + (factors.dense() if factors else 0)

    def branch_numel(self, shape: Sequence[int]) -> int:
        """Count the elements of one expert's branch, after compression."""
        if self.mask_rate == 1 and self.rank is None:
            return 0
        rank = self._rank(shape)
        return math.prod(shape) if rank is None else rank * sum(shape)

    def branches(self, slot: Slot, shared: Tensor) -> list[Branch]:
        """Compress each expert's difference from the shared expert: factors, or [*shape]."""
        if self.lora_space == "separate":
            return self._own_factors(slot)
        shared = shared.float()
        return [
            self._compressed(slot, i, expert.float() - shared)
            for i, expert in enumerate(slot.experts)
        ]

    def _shared_factors(self, slot: Slot) -> LowRank | None:
        """Merge B* and A*, each separately; None where no adapter changes the weight."""
        adapters = [factors for factors in slot.factors if factors]
        if not adapters and all(torch.equal(expert, slot.base) for expert in slot.experts):
            return None
        if not adapters or len({factors.up.shape[1] for factors in adapters}) > 1:
            raise MismatchError(
                f"{slot.name}: lora_space: separate merges the factors of adapters of one rank, "
                "which these experts do not all have; leave lora_space out"
            )
        n, average = len(slot.experts), self.shared_method == "average_merging"
        scale = 1 / n if average else self.scaling_coefficient
        up = torch.stack([f.scale * f.up.float() for f in adapters]).sum(0)
        down = torch.stack([f.down.float() for f in adapters]).sum(0)
        return LowRank(scale * up, scale * down)

    def _own_factors(self, slot: Slot) -> list[Branch]:
        """Compress the differences of each expert's B and A from B* and A*, each separately."""
        shared = self._shared_factors(slot)
        if shared is None:
            return [self._compressed(slot, 0, torch.zeros(slot.shape))] * len(slot.experts)
        device = slot.experts[0].device
        shared = LowRank(shared.up.to(device), shared.down.to(device))
        own: list[Branch] = []
        for i, adapter in enumerate(slot.factors):
            up, down = -shared.up, -shared.down
            if adapter:
                up = up + adapter.scale * adapter.up.float().to(device)
                down = down + adapter.down.float().to(device)
            own.append(Product(shared, *(self._factored(slot, i, matrix) for matrix in (up, down))))
        return own

    def _factored(self, slot: Slot, expert: int, matrix: Tensor) -> LowRank:
        rank = self._rank(matrix.shape)
        rank = min(matrix.shape) if rank is None else rank
        return truncated_svd(matrix, rank, slot.generator(expert))

    def _rank(self, shape: Sequence[int]) -> int | None:
        """Compute the number of ranks kept of a weight; None if it is not factored."""
        if len(shape) != 2 or self.mask_strategy != "svd":
            return None
        if self.rank is not None:
            return min(self.rank, *shape)
        # the released code's arithmetic: 1 - 0.9 is less than 0.1, so 50 ranks leave 4
        return int((1 - self.mask_rate) * min(shape)) if self.mask_rate else None

    def _compressed(self, slot: Slot, expert: int, delta: Tensor) -> Branch:
        rank, kept = self._rank(slot.shape), 1 - self.mask_rate
        if rank is not None:
            known = rank if delta.any() else 0  # adapters leave most weights unchanged
            return truncated_svd(delta, known, slot.generator(expert))
        if delta.ndim < 2 or kept == 1 or self.mask_strategy == "svd":
            return delta
        one = Slot(slot.name, None, (delta.cpu(),), seed=slot.seed)
        if self.mask_strategy == "bernoulli":
            return drop_at_random(one.experts[0], one, expert, kept) / kept
        count = int(kept * delta.numel())
        ((cut,),) = cuts([one.weight()], lambda part: part.experts, [[count]])
        threshold, last = torch.tensor(cut.threshold), torch.tensor(cut.last)
        return keep_largest(one.experts[0], one, threshold, last)


def _base(slot: Slot) -> Tensor:
    return slot.base.float()


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    paper = "Lu et al. 2024, arXiv:2406.15479"
    register("twin_merging", TwinMerging, needs_base=True, needs_data=learns, paper=paper)
