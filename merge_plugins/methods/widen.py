"""WIDEN: weigh each column of a layer by the change of its length and of its direction.

A column's score depends on sums over the column only, so one pass over the blocks computes all
scores, and the merge itself is elementwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Region, Slot, Weight, parameter
from merge_plugins.errors import ParameterError
from merge_plugins.ops.arithmetic import sums_over
from merge_plugins.plugins import hookimpl


@dataclass(frozen=True)
class WidenMerging:
    """Base plus task vectors weighed column by column, by how much each moved [Yu et al. 2024].

    A column holds a layer's weights for one of its inputs: one token's row of an embedding, or one
    column of a linear layer (also of the output head); in a stack of experts, of each matrix.
    """

    above_average_value_ratio: float = parameter(
        1.0, doc="columns ranked above this multiple of the average count as important, 0 or more"
    )
    score_calibration_value: float = parameter(1.0, doc="score of an important column")
    zero_columns: Literal["first", "last"] = parameter(
        "first",
        doc="rank of a column that is zero, thus without direction, in base or model: as if its "
        "direction had not changed (first), or changed most (last), as in MergeLLM",
    )
    granularity = ELEMENT

    def __post_init__(self) -> None:
        if not self.above_average_value_ratio >= 0:
            raise ParameterError(
                "above_average_value_ratio is a multiple of the average rank, 0 or more; "
                f"got {self.above_average_value_ratio:g}"
            )

    def measure(self, weight: Weight) -> Mapping[str, Tensor]:
        """Compute the score of every column: float32 [N, *shape], of size 1 along columns."""
        if len(weight.shape) < 2 or weight.input_dim is None:
            (scores,) = weight.map_blocks(self._scores_of_entries, [Region.whole(weight.shape)])
        else:
            scores = self._scores_of_columns(weight, weight.input_dim % len(weight.shape))
        return {"scores": scores.float()}

    def __call__(self, slot: Slot) -> Tensor:
        """Return base + sum(score delta): float32 [*shape]."""
        scores = slot.measured["scores"]
        region = slot.box
        box = (
            slice(None) if n_scores == 1 else slice(*bounds)
            for n_scores, bounds in zip(scores.shape[1:], region.bounds, strict=True)
        )
        everywhere = (slice(None), *box)
        weighed = slot.deltas().mul_(scores[everywhere])
        total: Tensor = functools.reduce(Tensor.add_, weighed)
        return total.add_(slot.base)

    def _scores_of_entries(self, slot: Slot) -> Tensor:
        """Score each entry of a bias or norm by its change in place of a rank: float64."""
        changes = slot.deltas().double().abs_()
        average = changes.view(len(changes), -1).mean(1).view(-1, *[1] * len(slot.shape))
        return self._calibrated(changes, average)

    def _scores_of_columns(self, weight: Weight, columns: int) -> Tensor:
        """Score columns by the mean of their scores of length and direction: float64."""
        rows = 2 * len(weight.shape) - 3 - columns  # the other of the last two dimensions
        n_columns = weight.shape[columns]
        changes = divergences(
            column_products(weight, rows), torch.inf if self.zero_columns == "last" else 0.0
        )
        ranks = [ranked(change) / max(1, n_columns) for change in changes]
        average = torch.tensor((n_columns - 1) / max(1, 2 * n_columns), dtype=torch.float64)
        length, direction = (self._calibrated(rank, average) for rank in ranks)
        return (length + direction).div_(2).unsqueeze(rows + 1)

    def _calibrated(self, values: Tensor, average: Tensor) -> Tensor:
        """Apply softmax over the models [N, ...]; values above average get a fixed score."""
        important = values > self.above_average_value_ratio * average
        return torch.where(important, self.score_calibration_value, values.softmax(0))


def column_products(weight: Weight, rows: int) -> Tensor:
    """Compute <base, base>, N of <delta, base> and N of <delta, delta> over dimension ``rows``.

    float64 [2 N + 1, *shape without rows]. Unlike lengths and cosines, these lose no digits to
    cancellation when fine-tuning changed a column by a ten-thousandth.
    """

    def products(block: Slot) -> Iterator[Tensor]:
        base, deltas = block.base.float(), block.deltas()
        pairs = [(base, base), *((d, base) for d in deltas), *((d, d) for d in deltas)]
        return (a * b for a, b in pairs)

    return sums_over(weight, rows, products)


def divergences(products: Tensor, undefined: float) -> tuple[Tensor, Tensor]:
    """Compute the change of each column's length, | |w| - |b| |, and direction, 1 - cos(w, b).

    ``products``: from `column_products`. Both results are float64 [N, ...]. ``undefined``: change
    of direction where a column is zero.
    """
    n = len(products) // 2
    base, along, moved = products[0], products[1 : n + 1], products[n + 1 :]
    squared = (base + 2 * along + moved).clamp_(min=0)
    lengths = base.sqrt() + squared.sqrt()
    stretched = (2 * along + moved).abs_().div_(torch.where(lengths > 0, lengths, 1.0))
    area, dot = (base * squared).sqrt_(), base + along
    # 1 - dot / area, as (area^2 - dot^2) / (area (area + dot)) unless that cancels instead
    turned = torch.where(
        dot > 0,
        (base * moved - along.square()).clamp_(min=0) / (area * (area + dot)),
        1 - dot / area,
    )
    return stretched, torch.where(area > 0, turned, undefined)


def ranked(values: Tensor) -> Tensor:
    """Rank each row's values in ascending order, 0 to n - 1, equal ones by position: float64."""
    order = values.argsort(dim=-1, stable=True)
    positions = torch.arange(values.shape[-1], dtype=torch.float64).expand_as(values)
    return torch.empty_like(positions).scatter_(-1, order, positions)


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method."""
    register(
        "widen_merging",
        WidenMerging,
        layout=True,
        needs_base=True,
        paper="Yu et al. 2024, arXiv:2408.03092",
    )
