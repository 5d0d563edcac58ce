"""Reorder the rows of weights with one row per token, and fill new rows."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.parallel import block_size, parallel
from merge_plugins.weights.computed import ComputedTensor, SourceTensor

Row: TypeAlias = tuple[SourceTensor, int]
MEAN = -1
"""Marks a row to fill with the mean of the weight's own rows that are used."""
OTHER = -2
"""Marks a row to fill with the mean of rows of other models."""


def with_rows(
    weight: SourceTensor,
    rows: Sequence[int],
    others: Mapping[int, Sequence[Row]] | None = None,
    read_as: torch.dtype | None = None,
) -> SourceTensor:
    """Select rows of a weight lazily: each an index into ``weight``, `MEAN` or `OTHER`.

    ``others``: for the position of each `OTHER` row, the rows to average; zero if there are none.
    Returns the weight itself if all its rows are selected in order.
    """
    if list(rows) == list(range(weight.shape[0])):
        return weight
    others = others or {}
    read_as = read_as or weight.dtype
    gather = _Gather(weight, tuple(rows), others, read_as)
    used = {id(tensor): tensor for made in others.values() for tensor, _ in made}
    order = {key: i for i, key in enumerate(used)}
    averaged = [(at, [(order[id(t)], row) for t, row in made]) for at, made in others.items()]
    chosen = hashlib.sha256(array("q", rows).tobytes() + repr(averaged).encode()).digest()
    return ComputedTensor(
        weight.name,
        weight.file,
        weight.dtype,
        (len(rows), *weight.shape[1:]),
        (weight, *used.values()),
        gather.read,
        ready=gather.take_mean,
        read_as=read_as,
        how=("rows", chosen),
    )


class _Gather:
    """Compute regions of a weight with selected rows."""

    def __init__(
        self,
        weight: SourceTensor,
        rows: tuple[int, ...],
        others: Mapping[int, Sequence[Row]],
        read_as: torch.dtype,
    ) -> None:
        self.weight, self.rows, self.others, self.read_as = weight, rows, others, read_as
        self.mean: Tensor | None = None

    def read(self, region: Region) -> Tensor:
        (start, stop), *rest = region.bounds
        made = torch.empty(region.sizes, dtype=self.read_as)
        for a, b, row in self._runs(start, stop):
            made[a - start : b - start] = self._run(a, b, row, rest)
        return made

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Split [start, stop) into runs of consecutive rows: (start, stop, first row)."""
        a = start
        while a < stop:
            b, row = a + 1, self.rows[a]
            while b < stop and row >= 0 and self.rows[b] == row + b - a:
                b += 1
            yield a, b, row
            a = b

    def _run(self, a: int, b: int, row: int, rest: Sequence[tuple[int, int]]) -> Tensor:
        """Compute rows [a, b) of the result, columns ``rest``; may return one row to broadcast."""
        if row == MEAN:
            assert self.mean is not None, "hold comes first"
            return Region(self.mean.shape, tuple(rest)).of(self.mean)
        if row == OTHER:
            parts = [_rows(tensor, at, at + 1, rest)[0].float() for tensor, at in self.others[a]]
            return torch.stack(parts).mean(0) if parts else torch.zeros(())
        return _rows(self.weight, row, row + b - a, rest)

    def take_mean(self) -> None:
        """Compute the mean row once, if any row is `MEAN`."""
        if self.mean is not None or MEAN not in self.rows:
            return
        rest = [(0, size) for size in self.weight.shape[1:]]
        n_rows, step = len(self.rows), max(1, block_size(1) // math.prod(self.weight.shape[1:]))

        def total(start: int) -> Tensor:
            sums = torch.zeros(self.weight.shape[1:], dtype=torch.float64)
            for a, b, row in self._runs(start, min(start + step, n_rows)):
                if row != MEAN:
                    taken = self._run(a, b, row, rest).expand(b - a, *sums.shape)
                    sums += taken.sum(0, dtype=torch.float64)
            return sums

        n_taken = sum(row != MEAN for row in self.rows)
        totals = parallel(total, range(0, n_rows, step))
        self.mean = (torch.stack(totals).sum(0) / max(1, n_taken)).float()


def _rows(tensor: SourceTensor, start: int, stop: int, rest: Sequence[tuple[int, int]]) -> Tensor:
    return tensor.read(Region(tensor.shape, ((start, stop), *rest)))
