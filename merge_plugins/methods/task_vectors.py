"""Methods that add task vectors to the base: task arithmetic, TIES, DARE, Breadcrumbs.

All share one pipeline, each with some of its steps: sparsify each task vector, weigh, elect signs,
sum, normalise, scale, add to the base. Numbers are mergekit's, including where it rounds to the
inputs' dtype; ``dtype: float32`` with ``out_dtype: bfloat16`` in the recipe rounds only once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, PerExpert, Region, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.methods._fields import (
    Rescale,
    Rescaling,
    check_share,
    density_field,
    int8_mask_field,
    lambda_field,
    never_adaptive,
    normalize_field,
    rescale_field,
    rescaling,
    weight_field,
)
from merge_plugins.ops.arithmetic import block_sums, combine, keep_largest, rounded, task_vectors
from merge_plugins.ops.random import drop_at_random
from merge_plugins.ops.selection import as_measured, cuts
from merge_plugins.plugins import hookimpl


def l1_factors(
    weight: Weight,
    sparsify: Callable[[Slot, list[Tensor]], list[Tensor]],
    regions: Sequence[Region] | None = None,
) -> Tensor:
    """Compute the factors that restore each task vector's L1 norm after ``sparsify``: float32 [N].

    A factor is 1 where either norm vanishes [mergekit], and not finite where ``sparsify`` dropped
    what is not. ``sparsify``: is given magnitudes, on which what it drops must depend alone;
    ``regions``: those that it accepts, if it does not accept any block.
    """

    def norms(block: Slot) -> Tensor:
        sizes = [delta.abs_() for delta in task_vectors(block)]
        before = block_sums(sizes)  # first: the next may overwrite
        return torch.stack([before, block_sums(sparsify(block, sizes))])

    before, after = (
        rounded(norm.float(), weight.dtype)
        for norm in torch.stack(weight.map_blocks(norms, regions)).sum(0)
    )
    vanished = ((before < 1e-7) | (after < 1e-7)) & before.isfinite()
    factor = torch.where(vanished, 1.0, before / after)
    return rounded(factor, weight.dtype)


def rescale_factors(
    weight: Weight,
    rescale: Rescale,
    density: PerExpert,
    sparsify: Callable[[Slot, list[Tensor]], list[Tensor]],
    regions: Sequence[Region] | None = None,
) -> Tensor:
    """Compute the factor on each sparsified task vector: float32 [N]; see `l1_factors`."""
    if rescale == "inverse_keep":
        return torch.tensor([1 / share if share else 1.0 for share in density])
    if rescale == "none" or min(density) >= 1:
        return torch.ones(len(density))
    return l1_factors(weight, sparsify, regions)


def rescaled(deltas: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """Multiply each task vector by its factor, in place: N of [*shape]."""
    return [d if f == 1 else d.mul_(f) for d, f in zip(deltas, factor.tolist(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic:
    """Base plus the weighted sum of task vectors [Ilharco et al. 2023, eq. 1]."""

    elect: ClassVar[bool] = False

    weight: PerExpert = weight_field(1.0)
    lambda_: float = lambda_field()
    normalize: bool = normalize_field(False)
    int8_mask: bool = int8_mask_field()
    granularity = ELEMENT
    shows_damage = True

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * sum(w delta): float32 [*shape]."""
        return combine(
            slot,
            task_vectors(slot),
            self.weight,
            scale=self.lambda_,
            normalize=self.normalize,
            elect=self.elect,
        )


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Trim to the largest changes, elect signs, average what agrees [Yadav et al. 2023, alg. 1]."""

    elect: ClassVar[bool] = True
    rescales: ClassVar[Rescale] = "l1"
    """Rescaling mode that ``rescale: true`` selects."""

    weight: PerExpert = weight_field()
    density: PerExpert = density_field()
    lambda_: float = lambda_field()
    normalize: bool = normalize_field(True)
    rescale: Rescaling = rescale_field(False)
    int8_mask: bool = int8_mask_field()
    granularity = ELEMENT
    measured_by = ("density", "rescale")

    def __post_init__(self) -> None:
        check_share("density", self.density)

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cut that keeps int(density * n) entries of each task vector.

        At least 1, as mergekit does, unless the density is 0.
        """
        n = math.prod(weight.shape)
        counts = [[max(int(density > 0), int(density * n))] for density in self.density]
        cut = as_measured(cuts([weight], task_vectors, counts))
        trim, mode = functools.partial(self.trim, cut), rescaling(self.rescale, self.rescales)
        return {**cut, "factor": rescale_factors(weight, mode, self.density, trim)}

    def trim(self, cut: Mapping[str, Tensor], slot: Slot, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Zero all but the largest entries of each task vector."""
        rows = zip(deltas, cut["threshold"][:, 0], cut["last"][:, 0], strict=True)
        return [keep_largest(delta, slot, threshold, last) for delta, threshold, last in rows]

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * elected mean of trimmed task vectors: float32 [*shape]."""
        cut = slot.measured
        trimmed = rescaled(self.trim(cut, slot, task_vectors(slot)), cut["factor"])
        return combine(
            slot,
            trimmed,
            self.weight,
            scale=self.lambda_,
            normalize=self.normalize,
            elect=self.elect,
        )


@dataclass(frozen=True, kw_only=True)
class DareLinear:
    """Drop entries of each task vector at random, rescale the rest, add up [Yu et al. 2024]."""

    elect: ClassVar[bool] = False
    rescales: ClassVar[Rescale] = "l1"
    """Rescaling mode that ``rescale: true`` selects."""

    weight: PerExpert = weight_field()
    density: PerExpert = density_field()
    lambda_: float = lambda_field()
    normalize: bool = normalize_field(False)
    rescale: Rescaling = rescale_field(True)
    int8_mask: bool = int8_mask_field()
    granularity = ELEMENT
    measured_by = ("density", "rescale")

    def __post_init__(self) -> None:
        check_share("density", self.density)
        if rescaling(self.rescale) != "none" and 0 in self.density:
            raise ParameterError("density 0 leaves nothing to rescale; set rescale: false")

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the rescaling factor of each task vector: float32 [N]."""
        mode = rescaling(self.rescale, self.rescales)
        return {"factor": rescale_factors(weight, mode, self.density, self.drop)}

    @property
    def shows_damage(self) -> bool:
        """Whether NaN in an entry that is dropped shows in the factor on all others."""
        return rescaling(self.rescale, self.rescales) == "l1" and min(self.density) < 1

    def drop(self, slot: Slot, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Zero each entry with probability 1 - density, in place."""
        return [
            drop_at_random(delta, slot, i, density)
            for i, (delta, density) in enumerate(zip(deltas, self.density, strict=True))
        ]

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * combination of the kept entries: float32 [*shape]."""
        kept = rescaled(self.drop(slot, task_vectors(slot)), slot.measured["factor"])
        return combine(
            slot, kept, self.weight, scale=self.lambda_, normalize=self.normalize, elect=self.elect
        )


class DareTies(DareLinear):
    """Drop entries of each task vector at random, rescale, elect signs [Yu et al. 2024]."""

    elect: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs:
    """Drop the largest and smallest entries of each task vector [Davari & Belilovsky 2024]."""

    elect: ClassVar[bool] = False

    weight: PerExpert = weight_field()
    density: PerExpert = density_field()
    gamma: PerExpert = parameter(0.01, doc="share of the largest entries dropped, in [0, 1]")
    lambda_: float = lambda_field()
    normalize: bool = normalize_field(False)
    rescale: Rescaling = rescale_field(False)
    int8_mask: bool = int8_mask_field()
    granularity = ELEMENT
    measured_by = ("density", "gamma", "rescale")

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_share("gamma", self.gamma)

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the cuts after the outliers and before the crumbs of each task vector."""
        n = math.prod(weight.shape)
        counts = []
        for density, gamma in zip(self.density, self.gamma, strict=True):
            middle = int(density * n) if density < 1 else n
            top = min(int(gamma * n), n - middle)  # density takes precedence over gamma
            counts.append([top, top + middle])
        cut = as_measured(cuts([weight], task_vectors, counts))
        trim = functools.partial(self.trim, cut)
        return {
            **cut,
            "factor": rescale_factors(weight, rescaling(self.rescale), self.density, trim),
        }

    def trim(self, cut: Mapping[str, Tensor], slot: Slot, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Zero the outliers and the crumbs of each task vector."""
        middle = []
        for delta, threshold, last in zip(deltas, cut["threshold"], cut["last"], strict=True):
            outliers = keep_largest(delta, slot, threshold[0], last[0])
            middle.append(keep_largest(delta, slot, threshold[1], last[1]) - outliers)
        return middle

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * sum of the middle of each task vector: float32 [*shape]."""
        cut = slot.measured
        middle = rescaled(self.trim(cut, slot, task_vectors(slot)), cut["factor"])
        return combine(
            slot,
            middle,
            self.weight,
            scale=self.lambda_,
            normalize=self.normalize,
            elect=self.elect,
        )


class BreadcrumbsTies(Breadcrumbs):
    """Drop the largest and smallest entries, elect signs [Davari & Belilovsky; Yadav et al.]."""

    elect: ClassVar[bool] = True


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    aliases = {"ties": never_adaptive("ties")}
    for name, method, paper in (
        ("task_arithmetic", TaskArithmetic, "Ilharco et al. 2023, arXiv:2212.04089"),
        ("ties", Ties, "Yadav et al. 2023, arXiv:2306.01708"),
        ("dare_linear", DareLinear, "Yu et al. 2024, arXiv:2311.03099"),
        ("dare_ties", DareTies, "Yu et al. 2024, arXiv:2311.03099"),
        ("breadcrumbs", Breadcrumbs, "Davari & Belilovsky 2024, arXiv:2312.06795"),
        ("breadcrumbs_ties", BreadcrumbsTies, "Davari & Belilovsky 2024, arXiv:2312.06795"),
    ):
        also = aliases.get(name, {})
        register(name, method, needs_base=True, paper=paper, aliases=also)
