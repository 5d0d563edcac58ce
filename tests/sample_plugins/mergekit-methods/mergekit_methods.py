"""What somebody who writes methods for mergekit 0.1.5 writes: no word of merge-plugins.

The first seven can be used through the bridge; `refused_*` and `tsv` cannot.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from mergekit.merge_methods import (
    BasePolicy,
    BatchParameter,
    GroupMergeMethod,
    InputContract,
    MergeMethod,
    MergeMethodSpec,
    ParameterScope,
    PerInput,
    PerNonBase,
    TensorBatch,
    TensorGroup,
    merge_method,
    register,
)
from mergekit.merge_methods.base import ParameterSpec
from pydantic import Field

REQUIRED = InputContract(base=BasePolicy.REQUIRED, min_inputs=2)
OPTIONAL = InputContract(base=BasePolicy.OPTIONAL, min_inputs=2)
PerModel = Annotated[torch.Tensor, BatchParameter(float, ParameterScope.INPUT)]
PerChange = Annotated[torch.Tensor, BatchParameter(float, ParameterScope.NON_BASE)]


@merge_method(name="power_mean", pretty_name="Power mean", reference_url="https://example.org/pm")
def power_mean(
    group: TensorGroup, weight: PerInput[float], power: int = 1, normalize: bool = True
) -> torch.Tensor:
    """Mean of signed powers, the base like any other model.

    A second paragraph.
    """
    weights = weight.values_for(group.entries)
    terms = [x.sign() * x.abs() ** power for x in group.tensors]
    total = sum(w * x for w, x in zip(weights, terms, strict=True))
    mean = total / sum(weights) if normalize else total
    return mean.sign() * mean.abs() ** (1 / power)


@merge_method(name="clipped_sum", contract=REQUIRED)
def clipped_sum(
    group: TensorGroup,
    weight: PerNonBase[float],
    clip: Annotated[float, Field(gt=0)],
    lambda_: float = 1.0,
) -> torch.Tensor:
    base = group.base.tensor
    moved = [(e.tensor - base).clamp(-clip, clip) * weight[e.id] for e in group.non_base]
    return base + lambda_ * torch.stack(moved).sum(0)


@merge_method(name="batched_mean", contract=OPTIONAL)
def batched_mean(batch: TensorBatch, around: float | None = None) -> torch.Tensor:
    if batch.base_index is None:
        return torch.stack(batch.tensors).mean(0)
    base, *others = batch.tensors
    moved = torch.stack(others).sub(base).mean(0)
    return base + moved * (1.0 if around is None else around)


@merge_method(name="batched_weights", contract=REQUIRED)
def batched_weights(batch: TensorBatch, weight: PerChange, rate: PerChange = 1.0) -> torch.Tensor:
    base, *others = batch.tensors
    shape = [-1, *[1] * (base.ndim - 1)]
    moved = base.clone()
    for i, other in enumerate(others):
        factor = (weight[:, i] * rate[:, i]).view(shape).to(base.dtype)
        moved = moved + factor * (other - base)
    return moved


@merge_method(name="batched_linear")
def batched_linear(batch: TensorBatch, weight: PerModel) -> torch.Tensor:
    shape = [-1, *[1] * (batch.tensors[0].ndim - 1)]
    terms = [x * weight[:, i].view(shape).to(x.dtype) for i, x in enumerate(batch.tensors)]
    return torch.stack(terms).sum(0)


@merge_method(name="coin_flips", contract=REQUIRED)
def coin_flips(group: TensorGroup, share: float = 0.5) -> torch.Tensor:
    base, other = group.base.tensor, group.non_base[0].tensor
    return torch.where(torch.rand(base.shape) < share, base, other)


class Extreme(GroupMergeMethod):
    """The largest or the smallest of the models, entry by entry."""

    spec = MergeMethodSpec(
        name="extreme",
        parameters=(
            ParameterSpec("side", Literal["largest", "smallest"], ParameterScope.SHARED),
            ParameterSpec("pick", bool, ParameterScope.INPUT, True, "whether it takes part"),
        ),
    )

    def merge_group(self, group, /, side, pick):
        chosen = torch.stack([e.tensor for e in group.entries if pick[e.id]])
        return chosen.amax(0) if side == "largest" else chosen.amin(0)


@merge_method(name="tsv")
def shadow(group: TensorGroup) -> torch.Tensor:
    return group.tensors[0]


@merge_method(name="refused_axis")
def refused_axis(group: TensorGroup) -> torch.Tensor:
    return group.tensors[0 if group.metadata.vocabulary_axis is None else -1]


@merge_method(name="refused_base")
def refused_base(group: TensorGroup) -> torch.Tensor:
    return (group.base or group.entries[0]).tensor


@merge_method(name="refused_weight", contract=REQUIRED)
def refused_weight(group: TensorGroup, weight: PerInput[float]) -> torch.Tensor:
    return sum(weight[e.id] * e.tensor for e in group.entries)


@merge_method(name="refused_name")
def refused_name(group: TensorGroup, prepare: float = 1.0) -> torch.Tensor:
    return group.tensors[0] * prepare


@merge_method(name="refused_default")
def refused_default(group: TensorGroup, factors: tuple[float, ...] = (1.0,)) -> torch.Tensor:
    return group.tensors[0] * factors[0]


class OwnWay(MergeMethod):
    spec = MergeMethodSpec(name="refused_class")

    def _execute(self, groups, parameters, options, *, input_dtypes, out_dtype=None):
        return tuple(group.tensors[0] for group in groups)


for method in (
    *(power_mean, clipped_sum, batched_mean, batched_weights, batched_linear, coin_flips),
    *(Extreme(), shadow, refused_axis, refused_base, refused_weight, refused_name),
    *(refused_default, OwnWay()),
):
    register(method)
