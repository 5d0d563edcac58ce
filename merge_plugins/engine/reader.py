"""Read regions of one weight from every model of a merge."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from merge_plugins.api import Region, Slot, Weight
from merge_plugins.engine.sources import PlannedSources
from merge_plugins.planning import Plan, PlannedTensor
from merge_plugins.weights import SourceTensor


class WeightReader:
    """Regions of one weight in every model, in the recipe's dtype."""

    def __init__(self, planned: PlannedTensor, plan: Plan, sources: PlannedSources) -> None:
        recipe = plan.recipe
        self._planned, self._plan, self._sources, self._seed = planned, plan, sources, recipe.seed
        self._dtype: torch.dtype | None = getattr(torch, recipe.dtype) if recipe.dtype else None
        self.measured: Mapping[str, Tensor] = {}

    def read(self, region: Region) -> Slot:
        """Read a region."""
        return self._slot(lambda stored: stored.read(region), region)

    def sample(self, pick: Callable[[Tensor], Tensor], positions: Tensor) -> Slot:
        """Read a few elements of the whole weight; see `merge_plugins.api.Reader`."""
        whole = Region.whole(self._planned.shape)
        slot = self._slot(lambda stored: pick(stored.view()).clone(), whole)
        self.release(whole)  # a page was read for each run, and its neighbours with it
        return dataclasses.replace(slot, positions=positions)

    def weight(self, region: Region) -> Weight:
        """Return the weight, or one matrix of it, unread."""
        planned = self._planned
        for stored in planned.stored:
            stored.view()  # computed weights are made once, not for every look at a block
        dtypes = [self._dtype] if self._dtype else [stored.read_as for stored in planned.stored]
        return Weight(
            planned.name,
            region,
            functools.reduce(torch.promote_types, dtypes),
            len(planned.experts),
            planned.base is not None,
            planned.input_dim,
            self,
            planned.dtype,
        )

    def _slot(self, read: Callable[[SourceTensor], Tensor], region: Region) -> Slot:
        base, experts = self._planned.base, self._planned.experts

        def part(stored: SourceTensor) -> Tensor:
            found = read(stored)
            return found if self._dtype is None else found.to(self._dtype)

        return Slot(
            self._planned.name,
            None if base is None else part(base),
            tuple(map(part, experts)),
            stats=self._stats_of(region),
            factors=tuple(getattr(expert, "factors", None) for expert in experts),
            measured=self.measured,
            seed=self._seed,
            input_dim=self._planned.input_dim,
            region=region,
        )

    def release(self, region: Region) -> None:
        """Hand the pages of a region back to the system, in every source and statistic."""
        span = region.span
        for stored in (*self._planned.stored, *itertools.chain(*self.statistics.values())):
            if stored is not None:
                stored.release(*((span or ()) if stored.shape == region.shape else ()))

    def _stats_of(self, region: Region) -> dict[str, tuple[Tensor | None, ...]]:
        def of(stored: SourceTensor | None) -> Tensor | None:
            if stored is None:
                return None
            return stored.read(region) if stored.shape == region.shape else stored.view()

        return {name: tuple(map(of, each)) for name, each in self.statistics.items()}

    @cached_property
    def statistics(self) -> dict[str, tuple[SourceTensor | None, ...]]:
        """Calibration statistics of this weight, by name, one per expert."""
        sources, name = self._sources, self._planned.name
        n_experts = len(self._plan.experts)
        return {
            asked: tuple(sources.of_weight(asked, expert, name) for expert in range(n_experts))
            for asked in self._plan.method.statistics(self._planned.kernel)
        }
