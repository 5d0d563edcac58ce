"""Baselines of DELLA's repository that mergekit lacks.

They are TIES and DARE with other combinations of election, averaging and scope. Numbers are the
repository's: DARE divides kept entries by the density. The repository's window_size does not apply.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge_plugins.api import ROW, Slot, Weight, parameter
from merge_plugins.methods._fields import (
    Rescale,
    Rescaling,
    never_adaptive,
    normalize_field,
    rescaling,
)
from merge_plugins.methods.della import PAPER
from merge_plugins.methods.task_vectors import DareLinear, TaskArithmetic, Ties, rescale_factors
from merge_plugins.ops.selection import by_rank
from merge_plugins.plugins import hookimpl


@dataclass(frozen=True, kw_only=True)
class NoDropNoElect(TaskArithmetic):
    """Base plus the weighted average of task vectors: no dropping, no election."""

    normalize: bool = normalize_field(True)


class NoDropElect(NoDropNoElect):
    """Elect signs and average what agrees, without dropping anything."""

    elect: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class TiesNoElect(Ties):
    """Trim to the largest changes and average them, without electing signs."""

    elect: ClassVar[bool] = False
    rescales: ClassVar[Rescale] = "none"

    rescale: Rescaling = parameter(
        False,
        doc="'l1' restores each task vector's L1 norm, 'inverse_keep' divides by the density; "
        "'none' (true or false: DELLA's code never rescales here) does neither",
    )


class TiesRow(TiesNoElect):
    """TIES that keeps the largest changes of each output row, not of the weight.

    Keeps int(density * n) entries of every row of n; a vector counts as one row.
    """

    elect: ClassVar[bool] = True
    granularity = ROW

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the rescaling factor of each task vector: float32 [N]."""
        trim, regions = functools.partial(self.trim, {}), weight.blocks(whole_rows=True)
        mode = rescaling(self.rescale, self.rescales)
        return {"factor": rescale_factors(weight, mode, self.density, trim, regions)}

    def trim(self, cut: Mapping[str, Tensor], slot: Slot, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Zero all but the largest entries in each row of each task vector."""
        return [
            delta if density >= 1 else largest_of_rows(delta, density)
            for delta, density in zip(deltas, self.density, strict=True)
        ]


def largest_of_rows(delta: Tensor, density: float) -> Tensor:
    """Zero all but the largest entries of each row: [*shape]."""
    rows = delta if delta.ndim else delta.view(1)
    n = rows.shape[-1]
    kept = by_rank(rows, (torch.arange(n) < int(density * n)).to(delta.dtype))
    return kept.view(delta.shape).mul_(delta)


@dataclass(frozen=True, kw_only=True)
class DareNoElect(DareLinear):
    """Drop entries at random, rescale and average the rest, without electing signs."""

    rescales: ClassVar[Rescale] = "inverse_keep"

    normalize: bool = normalize_field(True)
    rescale: Rescaling = parameter(
        True,
        doc="'inverse_keep' (true) divides by the density, as DARE and DELLA do; 'l1' restores "
        "each task vector's L1 norm, as mergekit does; 'none' (false) does neither",
    )


class DareDella(DareNoElect):
    """Drop entries at random, rescale, elect signs, average: DELLA with equal probabilities."""

    elect: ClassVar[bool] = True


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the methods of this family."""
    for name, method, facts in (
        ("nodrop_elect", NoDropElect, {"aliases": never_adaptive("nodrop")}),
        ("nodrop_noelect", NoDropNoElect, {}),
        ("ties_noelect", TiesNoElect, {}),
        ("ties_row", TiesRow, {}),
        ("dare_noelect", DareNoElect, {}),
        ("dare_della", DareDella, {"aliases": never_adaptive("dare_della")}),
    ):
        register(name, method, needs_base=True, paper=PAPER, **facts)
