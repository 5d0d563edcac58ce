"""DARE and its relatives: drop entries of every task vector, then merge with another method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import ModuleType
from typing import Any, Literal, cast, get_type_hints

import torch
from torch import Tensor

from merge_plugins.api import (
    Granularity,
    Kernel,
    Measures,
    MergesMatrices,
    PerExpert,
    Prepares,
    Slot,
    Sources,
    Weight,
    granularity_of,
    parameter,
)
from merge_plugins.errors import ParameterError
from merge_plugins.methods import (
    averages,
    fisher_regmean,
    mergellm,
    spherical,
    stock,
    task_vectors,
    widen,
)
from merge_plugins.methods._fields import check_share
from merge_plugins.methods.mergellm import Scope, deltas
from merge_plugins.ops.arithmetic import keep_largest
from merge_plugins.ops.random import drop_at_random
from merge_plugins.ops.selection import ALL, as_measured, cuts
from merge_plugins.plugins import hookimpl

InnerName = Literal[
    "average_merging",
    "task_arithmetic",
    "slerp_merging",
    "stock_merging",
    "breadcrumbs_merging",
    "ties_merging",
    "widen_merging",
    "fisher_merging",
    "regmean_merging",
]


def _registered(*families: ModuleType) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Collect the methods that families register: class and registration facts by name."""
    methods: dict[str, tuple[Any, Mapping[str, Any]]] = {}

    def register(name: str, method: Any, **facts: Any) -> None:
        methods[name] = method, facts

    for family in families:
        family.register_merge_methods(register)
    return methods


OWN = (
    "weight_mask_rate",
    "use_weight_rescale",
    "mask_strategy",
    "weight_format",
    "mask_apply_method",
)
"""Parameters of the mask; all other fields are parameters of the inner method."""
METHODS = _registered(averages, task_vectors, spherical, stock, mergellm, widen, fisher_regmean)


@dataclass(frozen=True)
class MaskMerging:
    """Mask each model's change (DARE, DropOnly, pruning), then merge [Yu et al. 2024].

    Drops entries, rescales the rest, adds the base back and merges the resulting models with
    ``mask_apply_method``, the inner method, whose parameters stand beside the mask's. Fisher
    information and Gram matrices are those of the models before masking, so that one computation
    serves any mask.
    """

    weight_mask_rate: PerExpert = parameter(0.1, doc="share of each task vector dropped, in [0, 1]")
    use_weight_rescale: bool = parameter(
        False, doc="divide kept entries by 1 - weight_mask_rate; with random masks this is DARE"
    )
    mask_strategy: Literal["random", "magnitude"] = parameter(
        "random", doc="entries dropped: drawn at random, or the smallest"
    )
    weight_format: Literal["delta_weight", "finetuned_weight"] = parameter(
        "delta_weight", doc="mask the task vectors, or the fine-tuned weights themselves"
    )
    mask_apply_method: InnerName = parameter(
        "average_merging", doc="method that merges the masked models"
    )
    scaling_coefficient: float = parameter(
        1.0,
        doc="task_arithmetic, breadcrumbs_merging, ties_merging: factor on the merged task vector",
    )
    slerp_t: float = parameter(0.5, doc="slerp_merging: position between both models")
    dot_threshold: float = parameter(0.9995, doc="slerp_merging: cosine beyond which lerp is used")
    clamp: bool = parameter(True, doc="stock_merging: keep the share of the mean in [0, 1]")
    param_density: float = parameter(0.9, doc="breadcrumbs_merging: share kept, in [0, 1]")
    param_value_mask_rate: float | None = parameter(
        None,
        doc="ties_merging: share trimmed, 0.8 unless given; "
        "breadcrumbs_merging: share dropped as the smallest, 0.09 unless given",
    )
    trim_scope: Scope = parameter("tensor", doc="ties_merging: rank within a weight or the model")
    above_average_value_ratio: float = parameter(
        1.0, doc="widen_merging: columns above this multiple of the average rank are important"
    )
    score_calibration_value: float = parameter(
        1.0, doc="widen_merging: score of an important column"
    )
    fisher_scaling_coefficients: PerExpert = parameter(
        1.0, doc="fisher_merging: importance of each model"
    )
    normalize_fisher_weight: bool = parameter(
        False, doc="fisher_merging: divide each model's Fisher information by its norm"
    )
    minimal_fisher_weight: float = parameter(
        1e-6, doc="fisher_merging: added to every entry of the Fisher information"
    )
    reduce_non_diagonal_ratio: float = parameter(
        0.9, doc="regmean_merging: factor on the off-diagonal entries of Gram matrices, in [0, 1]"
    )

    def __post_init__(self) -> None:
        check_share("weight_mask_rate", self.weight_mask_rate)
        n, name = len(self.weight_mask_rate), self.mask_apply_method
        low, high = self.fact("min_experts", 1), self.fact("max_experts", None)
        if n < low or (high is not None and n > high):
            wanted = f"{low}" if low == high else f"{low} or more"
            raise ParameterError(
                f"mask_apply_method {name} merges {wanted} models, got {n}; change models: to "
                "that many, or write mask_apply_method: average_merging, which takes any number"
            )
        _ = self.inner  # raises for parameters that the inner method refuses
        for field in fields(self)[len(OWN) :]:
            value = getattr(self, field.name)
            given = value[0] if isinstance(value, tuple) else value
            if given != field.default and field.name not in self._read:
                raise ParameterError(
                    f"mask_apply_method {name} does not read {field.name}; delete it"
                )

    @property
    def granularity(self) -> Granularity:
        """Granularity of the inner method."""
        return granularity_of(self.inner)

    @cached_property
    def _read(self) -> set[str]:
        """Names and aliases of the inner method's parameters."""
        method, _ = METHODS[self.mask_apply_method]
        return {w for f in fields(method) for w in (f.name, *f.metadata.get("alias", ()))}

    @cached_property
    def inner(self) -> Any:
        """Inner method, built with the parameters that it shares with this one."""
        method, _ = METHODS[self.mask_apply_method]
        hints, given = get_type_hints(method), {}
        for field in fields(method):
            names = (field.name, *field.metadata.get("alias", ()))
            mine = (getattr(self, name) for name in names if hasattr(self, name))
            value = next((value for value in mine if value is not None), field.default)
            if hints[field.name] == PerExpert and not isinstance(value, tuple):
                value = (value,) * len(self.weight_mask_rate)
            given[field.name] = value
        return method(**given)

    def fact(self, name: str, default: Any) -> Any:
        """Look up a registration fact of the inner method."""
        fact = METHODS[self.mask_apply_method][1].get(name, default)
        return fact(self.inner) if callable(fact) else fact

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cuts of the mask and, after masking, the inner method's measures."""
        return _Masked(self, self.inner).measure(weight)

    def prepare(self, sources: Sources) -> Kernel | None:
        """Prepare the inner method on the masked models, if it reads the whole model."""
        if not isinstance(self.inner, Prepares):
            return None
        prepared = self.inner.prepare(cast(Sources, _MaskedSources(self, sources)))
        return _Masked(self, prepared) if prepared else None

    def __call__(self, slot: Slot) -> Tensor:
        """Merge the masked models with the inner method: float32 [*shape]."""
        return _Masked(self, self.inner)(slot)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Merge masked matrices with the inner method: float32 [*shape]."""
        return _Masked(self, self.inner).merge_matrix(weight)

    def vectors(self, slot: Slot) -> list[Tensor]:
        """Return the vectors to mask, task vectors or weights: N of float32 [*shape]."""
        if self.weight_format == "delta_weight":
            return list(deltas(slot))
        return [expert.float().clone() for expert in slot.experts]

    def cuts(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cut of each model's magnitudes; empty for random masks."""
        if self.mask_strategy == "random":
            return {}
        n = math.prod(weight.shape)
        dropped = [int(n * rate) for rate in self.weight_mask_rate]
        counts = [[n + 1 - k if k else n] for k in dropped]
        measured = as_measured(cuts([weight], self.vectors, counts))
        nothing_dropped = torch.tensor([[k == 0] for k in dropped])
        last = torch.where(nothing_dropped, ALL, -1)  # drops all entries equal to the k-th smallest
        return {"mask_threshold": measured["threshold"], "mask_last": last}

    def masked(self, slot: Slot) -> Slot:
        """Mask every model of a slot; experts become float32."""
        vectors = self.vectors(slot)
        experts = []
        for i, (vector, rate) in enumerate(zip(vectors, self.weight_mask_rate, strict=True)):
            if self.mask_strategy == "random":
                kept = drop_at_random(vector, slot, i, 1 - rate)
            else:
                cut = slot.measured["mask_threshold"][i, 0], slot.measured["mask_last"][i, 0]
                kept = keep_largest(vector, slot, *cut)
            if self.use_weight_rescale and rate < 1:
                kept = kept / (1 - rate)
            experts.append(kept + slot.base if self.weight_format == "delta_weight" else kept)
        return replace(slot, experts=tuple(experts))


@dataclass(frozen=True)
class _Masked:
    """Mask the models, then merge them with the inner kernel."""

    mask: MaskMerging
    inner: Kernel

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        measured = dict(self.mask.cuts(weight))
        if isinstance(self.inner, Measures):
            measured.update(self.inner.measure(_masked_weight(weight, self.mask, measured)))
        return measured

    def __call__(self, slot: Slot) -> Tensor:
        return self.inner(self.mask.masked(slot))

    def merge_matrix(self, weight: Weight) -> Tensor:
        return cast(MergesMatrices, self.inner).merge_matrix(weight.through(self.mask.masked))


@dataclass(frozen=True)
class _MaskedSources:
    """Sources with every weight masked when it is read."""

    mask: MaskMerging
    sources: Sources

    def slots(self) -> Iterator[Weight]:
        for weight in self.sources.slots():
            yield _masked_weight(weight, self.mask, self.mask.cuts(weight))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sources, name)


def _masked_weight(weight: Weight, mask: MaskMerging, measured: Mapping[str, Tensor]) -> Weight:
    """Wrap a weight so that it is masked when it is read; ``measured``: the cuts of the mask."""
    return weight.through(lambda part: mask.masked(replace(part, measured=measured)))


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    register(
        "mask_merging",
        MaskMerging,
        layout=lambda mask: mask.fact("layout", False),
        stats=lambda mask: mask.fact("stats", ()),
        needs_data=lambda mask: mask.fact("needs_data", False),
        needs_base=True,
        paper="Yu et al. 2024, arXiv:2311.03099",
    )
