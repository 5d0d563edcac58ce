"""DELLA: drop entries of each task vector at random, small ones sooner than large ones.

``della`` and ``della_linear`` with ``density`` and ``epsilon`` give mergekit's numbers. With
``drop_rate`` or ``window_size``, the parameters of DELLA's own repository, they give that
repository's numbers: kept entries are divided by their keep probability, in float32. A mode named
by ``rescale`` overrides both. The repository's ``dare_ties`` and ``dare_linear`` equal mergekit's
with ``rescale: inverse_keep``; its ``ties`` (which ignores rescale), ``task_arithmetic``,
``linear``, ``slerp`` and ``passthrough`` equal mergekit's without rescale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge_plugins.api import ROW, WHOLE, MaybePerExpert, PerExpert, Region, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.methods._fields import (
    Rescale,
    Rescaling,
    check_share,
    int8_mask_field,
    lambda_field,
    never_adaptive,
    normalize_field,
    rescaling,
    weight_field,
)
from merge_plugins.methods.task_vectors import l1_factors, rescaled
from merge_plugins.ops.arithmetic import combine, task_vectors
from merge_plugins.ops.random import keep_at_random
from merge_plugins.ops.selection import by_rank
from merge_plugins.plugins import hookimpl

PAPER = "Deep et al. 2024, arXiv:2406.11617"
EPSILON = 0.15
"""Default epsilon of mergekit; DELLA's repository has 0."""

Window = tuple[float, float]
"""Keep probabilities of the smallest and the largest entry; at (1, 1) nothing is dropped."""


@dataclass(frozen=True, kw_only=True)
class DellaLinear:
    """Drop small changes at random, rarely large ones, rescale, add up [Deep et al. 2024].

    MagPrune: keep probabilities rise evenly with the rank of the magnitude in its output row, from
    density - epsilon to density + epsilon. A vector counts as one row; the entry of a row of one is
    kept with probability density.
    """

    elect: ClassVar[bool] = False
    published: ClassVar[bool] = False
    """Whether the method exists in DELLA's repository only, so that its numbers are always used."""

    weight: PerExpert = weight_field()
    density: MaybePerExpert = parameter(
        None, doc="share of each task vector kept, in [0, 1]; 1 if neither it nor drop_rate is set"
    )
    drop_rate: MaybePerExpert = parameter(None, doc="DELLA's parameter for 1 - density, in [0, 1]")
    epsilon: MaybePerExpert = parameter(
        None,
        doc="keep probabilities run from density - epsilon to density + epsilon, all in (0, 1); "
        f"{EPSILON:g} unless it or one of DELLA's parameters is set",
    )
    window_size: MaybePerExpert = parameter(None, doc="DELLA's parameter for 2 * epsilon")
    lambda_: float = lambda_field()
    normalize: bool = normalize_field(False)
    rescale: Rescaling = parameter(
        True,
        doc="'inverse_keep' divides kept entries by their keep probability, as DELLA does; 'l1' "
        "restores each task vector's L1 norm, as mergekit does; 'none' (false) does neither; true: "
        "'inverse_keep' if drop_rate or window_size is set, else 'l1'",
    )
    int8_mask: bool = int8_mask_field()
    granularity = ROW
    measured_by = ("density", "drop_rate", "epsilon", "window_size", "rescale")

    def __post_init__(self) -> None:
        _ = self.windows  # raises for densities and epsilons that cannot be combined

    @property
    def as_published(self) -> bool:
        """Whether the recipe uses the parameters of DELLA's repository, not mergekit's."""
        given = (*self.drop_rate, *self.window_size)
        return self.published or any(value is not None for value in given)

    @property
    def how(self) -> Rescale:
        """Rescaling mode of the kept entries."""
        return rescaling(self.rescale, "inverse_keep" if self.as_published else "l1")

    @property
    def windows(self) -> list[Window]:
        """Range of each expert's keep probabilities, checked: N pairs."""
        epsilon = 0.0 if self.as_published else EPSILON
        each = zip(self.density, self.drop_rate, self.epsilon, self.window_size, strict=True)
        return [window(*given, epsilon) for given in each]

    def probabilities(self, delta: Tensor, low: float, high: float) -> Tensor:
        """Rise from ``low`` to ``high`` with an entry's rank in its row: float32 [*shape]."""
        rows = delta if delta.ndim else delta.view(1)
        return by_rank(rows, falling(high, low, rows.shape[-1])).view(delta.shape)

    def regions(self, weight: Weight) -> Sequence[Region]:
        """Cut a weight into regions that can be pruned independently: blocks of whole rows."""
        return weight.blocks(whole_rows=True)

    def prune(self, slot: Slot, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Zero entries at random; with inverse_keep divide the rest. Overwrites ``deltas``."""
        pruned = []
        for i, (delta, (low, high)) in enumerate(zip(deltas, self.windows, strict=True)):
            if low >= 1:
                pruned.append(delta)
                continue
            keep = self.probabilities(delta, low, high)
            kept = keep_at_random(delta, slot, i, keep)
            pruned.append(kept.float().div_(keep) if self.how == "inverse_keep" else kept)
        return pruned

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the factor that restores each task vector's L1 norm: float32 [N]."""
        if self.how != "l1" or all(low >= 1 for low, _ in self.windows):
            return {"factor": torch.ones(len(self.windows))}
        return {"factor": l1_factors(weight, self.prune, self.regions(weight))}

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + lambda * combination of the kept entries: float32 [*shape]."""
        kept = rescaled(self.prune(slot, task_vectors(slot)), slot.measured["factor"])
        return combine(
            slot, kept, self.weight, scale=self.lambda_, normalize=self.normalize, elect=self.elect
        )


@dataclass(frozen=True, kw_only=True)
class Della(DellaLinear):
    """Drop small changes at random, rarely large ones, elect signs, average [Deep et al. 2024]."""

    elect: ClassVar[bool] = True

    normalize: bool = normalize_field(True)


class DellaNoRank(Della):
    """DELLA with keep probabilities that rise with the magnitude itself [Deep et al. 2024].

    They rise evenly from the smallest to the largest magnitude of each row; entries of a row of
    equal magnitudes are kept with probability density.
    """

    published: ClassVar[bool] = True

    def probabilities(self, delta: Tensor, low: float, high: float) -> Tensor:
        """Rise from ``low`` to ``high`` with an entry's magnitude: float32 [*shape]."""
        if not delta.numel():
            return torch.empty(delta.shape)
        size = delta.float().abs()
        least, most = size.aminmax(dim=-1, keepdim=True) if size.ndim else (size, size)
        spread = most - least
        share = torch.where(spread > 0, (size - least) / spread, 0.5)
        return share.mul_(high - low).add_(low)


class DellaLayerNorm(Della):
    """DELLA with magnitudes ranked over the whole weight, not row by row [Deep et al. 2024]."""

    published: ClassVar[bool] = True
    granularity = WHOLE

    def probabilities(self, delta: Tensor, low: float, high: float) -> Tensor:
        """Rise from ``low`` to ``high`` with an entry's rank in the weight: float32 [*shape]."""
        return by_rank(delta.reshape(-1), falling(high, low, delta.numel())).view(delta.shape)

    def regions(self, weight: Weight) -> Sequence[Region]:
        """Return the whole weight, which has to be ranked at once."""
        return [Region.whole(weight.shape)]


def window(
    density: float | None,
    drop_rate: float | None,
    epsilon: float | None,
    window_size: float | None,
    usual_epsilon: float,
) -> Window:
    """Compute one expert's range of keep probabilities from its parameters, or raise."""
    if density is not None and drop_rate is not None:
        raise ParameterError(
            f"density {density:g} and drop_rate {drop_rate:g} say the same thing twice (density is "
            "1 - drop_rate); write one"
        )
    if epsilon is not None and window_size is not None:
        raise ParameterError(
            f"epsilon {epsilon:g} and window_size {window_size:g} say the same thing twice "
            "(window_size is 2 * epsilon); write one"
        )
    if drop_rate is not None:
        check_share("drop_rate", (drop_rate,))
        density = 1 - drop_rate
    if window_size is not None:
        epsilon = window_size / 2
    density = 1.0 if density is None else density
    epsilon = usual_epsilon if epsilon is None else epsilon
    check_share("density", (density,))
    if density == 1:
        return 1.0, 1.0
    if not 0 <= epsilon < min(density, 1 - density):
        limit = min(density, 1 - density)
        raise ParameterError(
            f"keep probabilities density ± epsilon must lie in (0, 1); got {density:g} ± "
            f"{epsilon:g}. At this density "
            + (
                f"epsilon is in [0, {limit:g}), window_size in [0, {2 * limit:g})"
                if limit
                else "nothing is kept; leave the model out"
            )
        )
    return density - epsilon, density + epsilon


def falling(high: float, low: float, n: int) -> Tensor:
    """Space n values evenly from ``high`` to ``low`` inclusive: float32 [n]; one: the middle."""
    if n == 1:
        return torch.tensor([(high + low) / 2])
    return torch.linspace(high, low, n, dtype=torch.float64).float()


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    note = (
        "DELLA's code elects signs under this name too; della_linear with normalize: true does not"
    )
    aliases = {"della_noelect": note, **never_adaptive("della")}
    register("della", Della, needs_base=True, paper=PAPER, aliases=aliases)
    register("della_linear", DellaLinear, needs_base=True, paper=PAPER)
    register("della_norank", DellaNoRank, needs_base=True, paper=PAPER)
    register("della_layer_norm", DellaLayerNorm, needs_base=True, paper=PAPER)
