"""Average models by statistics of examples: Fisher information, or Gram matrices of inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, MATRIX, Kernel, PerExpert, Slot, Sources, Weight, parameter
from merge_plugins.calibration import fisher, gram
from merge_plugins.errors import ParameterError
from merge_plugins.methods.averages import Average
from merge_plugins.ops.arithmetic import weighted_sum
from merge_plugins.plugins import hookimpl

RIDGE = 1e-3
"""Share of each input's energy added to the diagonal where Gram matrices are near singular."""
DETERMINED = 1e-6
"""Smallest share of an input's energy that the inputs before it may leave unexplained, above the
noise of float32 sums, about 1e-7."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FisherMerging:
    """Average weighed by Fisher information, elementwise [Matena & Raffel 2022; MergeLM]."""

    fisher_scaling_coefficients: PerExpert = parameter(
        1.0, doc="importance of each model, 0 or more; only their ratios count"
    )
    normalize_fisher_weight: bool = parameter(
        False, doc="divide each model's Fisher information by its norm over all merged weights"
    )
    minimal_fisher_weight: float = parameter(
        1e-6, doc="added to every entry of the Fisher information, above 0"
    )
    fisher: Literal["per_example", "mergelm"] = parameter(
        "per_example",
        doc="square each example's gradient (the paper), or each batch's as MergeLM's code does",
    )
    granularity = ELEMENT

    def __post_init__(self) -> None:
        if not self.minimal_fisher_weight > 0:
            raise ParameterError(
                f"minimal_fisher_weight is a number above 0; got {self.minimal_fisher_weight}"
            )
        given = self.fisher_scaling_coefficients
        if isinstance(given, tuple) and (min(given) < 0 or not sum(given) > 0):
            raise ParameterError(
                "fisher_scaling_coefficients are numbers of 0 or more, not all 0; "
                f"got {list(given)}"
            )

    @property
    def stats(self) -> tuple[str, ...]:
        """Name of the calibration statistic that this method reads."""
        return ("fisher" if self.fisher == "per_example" else "fisher_mergelm",)

    def prepare(self, sources: Sources) -> Kernel | None:
        """Compute missing Fisher information, and its norms for ``normalize_fisher_weight``."""
        (name,) = self.stats
        _warn_of_averaged(sources, name)
        if not self.normalize_fisher_weight:
            return None
        weights = [weight.name for weight in sources.slots()]
        norms = []
        for i in range(len(sources.names)):
            stats = sources.stat(name, i)
            parts = [
                stats[weight].norm(dtype=torch.float64) for weight in weights if weight in stats
            ]
            norms.append(float(torch.stack(parts).norm()) if parts else 0.0)
        shares = [1 / (norm + self.minimal_fisher_weight) for norm in norms]
        pairs = zip(self.fisher_scaling_coefficients, shares, strict=True)
        scaled = tuple(c * share / sum(shares) for c, share in pairs)
        return replace(self, fisher_scaling_coefficients=scaled)

    def __call__(self, slot: Slot) -> Tensor:
        """Return sum(c (F + eps) x) / sum(c (F + eps)): float32 [*shape]."""
        (name,) = self.stats
        known = [information for information in slot.stats[name] if information is not None]
        if len(known) < len(slot.experts):
            shares = self.fisher_scaling_coefficients
            return weighted_sum(slot.experts, shares).div_(torch.tensor(shares).sum())
        total, norm = torch.zeros(slot.shape), torch.zeros(slot.shape)
        each = zip(self.fisher_scaling_coefficients, known, slot.experts, strict=True)
        for c, information, expert in each:
            weight = (information + self.minimal_fisher_weight).mul_(c)
            norm += weight
            total += weight.mul_(expert)
        return total.div_(norm)


@dataclass(frozen=True)
class RegMeanMerging:
    """Linear layers that best keep every model's outputs, by least squares [Jin et al. 2023].

    Weights outside linear layers are averaged. Where the calibration inputs do not determine the
    solution, off-diagonal entries are shrunk by a further 0.1 %.
    """

    reduce_non_diagonal_ratio: float = parameter(
        0.9, doc="factor on the off-diagonal entries of Gram matrices, in [0, 1]"
    )

    stats = ("gram",)
    granularity = MATRIX

    def __post_init__(self) -> None:
        if not 0 <= self.reduce_non_diagonal_ratio <= 1:
            raise ParameterError(
                "reduce_non_diagonal_ratio is a factor in [0, 1]; "
                f"got {self.reduce_non_diagonal_ratio}"
            )

    def prepare(self, sources: Sources) -> None:
        """Compute the models' Gram matrices unless they are on disk."""
        _warn_of_averaged(sources, *self.stats)

    def __call__(self, slot: Slot) -> Tensor:
        """Return the mean of the models: float32 [*shape]."""
        return Average()(slot)

    def merge_matrix(self, weight: Weight) -> Tensor:
        """Return (sum G)^-1 sum(G W), inputs first: float32 [*shape], solved in float64."""
        slot = weight.part(weight.region)
        grams = [gram for gram in slot.stats["gram"] if gram is not None]
        if len(grams) < len(slot.experts) or slot.input_dim is None:
            return self(slot)
        weights = [expert.movedim(slot.input_dim, 0) for expert in slot.experts]
        merged, determined = _solved(grams, weights, self.reduce_non_diagonal_ratio)
        if determined < DETERMINED:
            merged, _ = _solved(grams, weights, self.reduce_non_diagonal_ratio / (1 + RIDGE))
        return merged.float().movedim(0, slot.input_dim)


def _solved(
    grams: Sequence[Tensor], weights: Sequence[Tensor], ratio: float
) -> tuple[Tensor, float]:
    """Solve least squares: float64 [inputs, outputs], and a measure of its conditioning.

    The measure is the smallest share of an input's energy that the inputs before it do not explain.
    Inputs are scaled to unit energy first; the weights of an input that was never active in any
    model are averaged.
    """
    energy = torch.stack([gram.diagonal() for gram in grams]).sum(0).double()
    left = torch.zeros(len(energy), len(energy), dtype=torch.float64)
    right = torch.zeros(weights[0].shape, dtype=torch.float64)
    for own, weight in zip(grams, weights, strict=True):
        shrunk = own.double().mul_(ratio)
        shrunk.diagonal().copy_(torch.where(energy > 0, own.diagonal().double(), 1.0))
        left += shrunk
        right += shrunk @ weight.double()
    scale = left.diagonal().rsqrt().unsqueeze(1)
    factor, failed = torch.linalg.cholesky_ex(left.mul_(scale).mul_(scale.T))
    if failed:
        return right, 0.0
    solution = torch.cholesky_solve(right.mul_(scale), factor).mul_(scale)
    return solution, float(factor.diagonal().square().min())


def _warn_of_averaged(sources: Sources, statistic: str) -> None:
    """Warn of weights that are averaged because a model lacks a statistic expected of their shape.

    Gram matrices are expected of linear layers, Fisher information of every weight.
    """
    known = [sources.stat(statistic, i).keys() for i in range(len(sources.names))]
    expected = [
        weight.name
        for weight in sources.slots()
        if statistic != "gram" or (len(weight.shape) > 1 and weight.input_dim in (-1, -2))
    ]
    missing = [name for name in expected if not all(name in names for names in known)]
    if missing:
        logger.warning(
            "%d of %d weights have no %s in every model and are averaged, first %s. The model's "
            "code fuses or does not use them.",
            *(len(missing), len(expected), statistic, missing[0]),
        )


@hookimpl
def register_statistics(register: Callable[..., None]) -> None:
    """Register Fisher information and Gram matrices."""
    register("fisher", fisher.per_example, elementwise=True)
    register("fisher_mergelm", fisher.of_batches, elementwise=True)
    register("gram", gram.gram)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    register(
        "fisher_merging",
        FisherMerging,
        stats=lambda method: method.stats,
        needs_data=True,
        paper="Matena & Raffel 2022, arXiv:2111.09832",
    )
    register(
        "regmean_merging",
        RegMeanMerging,
        stats=RegMeanMerging.stats,
        paper="Jin et al. 2023, arXiv:2212.09849",
    )
