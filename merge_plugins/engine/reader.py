"""Read regions of one weight from every model of a merge."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from merge_plugins.api import Region, Slot
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
        return self._slot(region, lambda stored: self.convert(stored.read(region)))

    def slot(self, region: Region) -> Slot:
        """The slot of that region, unread: for looking at it piece by piece."""
        unread = self._slot(region, lambda stored: region.of(stored.view()))
        return dataclasses.replace(unread, reader=self)

    def _slot(self, region: Region, part: Callable[[SourceTensor], Tensor]) -> Slot:
        base, experts = self._planned.base, self._planned.experts
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
            rounds_to=self._planned.dtype,
        )

    def convert(self, stored: Tensor) -> Tensor:
        return stored if self._dtype is None else stored.to(self._dtype)

    def release(self, region: Region) -> None:
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
