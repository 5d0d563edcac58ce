"""Weights with one row per token, whose rows are put in another order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.parallel import block_size, parallel
from merge_plugins.weights.computed import ComputedTensor, SourceTensor

Row: TypeAlias = tuple[SourceTensor, int]
MEAN = -1
"""Stands for a row that is the mean of the weight's own rows that are taken."""
OTHER = -2
"""Stands for a row made of rows of other models."""


def with_rows(
    weight: SourceTensor,
    rows: Sequence[int],
    others: Mapping[int, Sequence[Row]] | None = None,
    read_as: torch.dtype | None = None,
) -> SourceTensor:
    """Return a weight of ``len(rows)`` rows: the given ones of ``weight``, `MEAN` or `OTHER`.

    ``others``: by its position, the rows whose mean an `OTHER` row is; of none, it is zero.
    The weight itself comes back when its rows are all taken in order.
    """
    if list(rows) == list(range(weight.shape[0])):
        return weight
    others = others or {}
    read_as = read_as or weight.dtype
    gather = _Gather(weight, tuple(rows), others, read_as)
    used = {id(tensor): tensor for made in others.values() for tensor, _ in made}
    return ComputedTensor(
        weight.name,
        weight.file,
        weight.dtype,
        (len(rows), *weight.shape[1:]),
        (weight, *used.values()),
        gather.read,
        ready=gather.take_mean,
        read_as=read_as,
    )


class _Gather:
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
        """Cut [start, stop) into runs whose rows follow each other: (start, stop, first row)."""
        a = start
        while a < stop:
            b, row = a + 1, self.rows[a]
            while b < stop and row >= 0 and self.rows[b] == row + b - a:
                b += 1
            yield a, b, row
            a = b

    def _run(self, a: int, b: int, row: int, rest: Sequence[tuple[int, int]]) -> Tensor:
        """Rows [a, b) of the result, columns ``rest``; one row may stand for all."""
        if row == MEAN:
            assert self.mean is not None, "hold comes first"
            return Region(self.mean.shape, tuple(rest)).of(self.mean)
        if row == OTHER:
            found = [_rows(tensor, at, at + 1, rest)[0].float() for tensor, at in self.others[a]]
            return torch.stack(found).mean(0) if found else torch.zeros(())
        return _rows(self.weight, row, row + b - a, rest)

    def take_mean(self) -> None:
        """Compute the mean row, once, if any row is it."""
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
