"""Read regions of one weight from every model of a merge."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from merge_plugins.api import LowRank, Region, Slot, Weight
from merge_plugins.engine.carrier import carrier_to
from merge_plugins.engine.sources import PlannedSources
from merge_plugins.parallel import CPU, Place
from merge_plugins.planning import Plan, PlannedTensor
from merge_plugins.weights import SourceTensor


class WeightReader:
    """Regions of one weight in every model, in the recipe's dtype, on the device of a place."""

    def __init__(
        self, planned: PlannedTensor, plan: Plan, sources: PlannedSources, place: Place = CPU
    ) -> None:
        recipe = plan.recipe
        self.planned, self._plan, self._sources, self._seed = planned, plan, sources, recipe.seed
        self.place = place
        self.dtype: torch.dtype | None = getattr(torch, recipe.dtype) if recipe.dtype else None
        self.measured: Mapping[str, Tensor] = {}

    def read(self, region: Region) -> Slot:
        """Read a region: views of the files, or copies on the device."""
        return self._slot(self.bring(self.planned.stored, region), region)

    def walk(self, regions: Iterable[Region]) -> Iterator[Slot]:
        """Read regions in turn, and release each when the next is asked for, unless it `stays`.

        Onto a device, the next is read while the caller works on the last.
        """
        if self.place.by_threads:
            for region in regions:
                yield self.read(region)
                if not self.stays:
                    self.release(region)
            return
        wanted, stored = list(regions), self.planned.stored
        with closing(carrier_to(self.place.device).bring_each(stored, wanted)) as brought:
            for region in wanted:
                yield self._slot(next(brought), region)
                self.release(region)

    @cached_property
    def stays(self) -> bool:
        """Whether there is room for the inputs until the weight is merged.

        A method that measures it reads the same pages again, and to map them anew takes longer than
        a pass of arithmetic.
        """
        planned = self.planned
        n_bytes = sum(math.prod(each.shape) * each.read_as.itemsize for each in planned.stored)
        return n_bytes <= self.place.room

    def bring(self, sources: Sequence[SourceTensor], region: Region) -> list[Tensor]:
        """Read a region of some weights: views of their files, or copies on the device."""
        if self.place.by_threads:
            return [source.read(region) for source in sources]
        return carrier_to(self.place.device).bring(sources, region)

    def sample(self, pick: Callable[[Tensor], Tensor], positions: Tensor) -> Slot:
        """Read a few elements of the whole weight; see `merge_plugins.api.Reader`."""
        whole = Region.whole(self.planned.shape)
        device = self.place.device
        picked = [
            pick(self._all_of(stored)).to(device, copy=True) for stored in self.planned.stored
        ]
        slot = self._slot(picked, whole)
        self.release(whole)  # a page was read for each run, and its neighbours with it
        return dataclasses.replace(slot, positions=positions)

    def _all_of(self, source: SourceTensor) -> Tensor:
        """View all of a weight: where it stays on the device, else in its file."""
        if self.place.by_threads or not carrier_to(self.place.device).stays(source):
            return source.view()
        return self.bring([source], Region.whole(source.shape))[0]

    def weight(self, region: Region) -> Weight:
        """Return the weight, or one matrix of it, unread."""
        planned = self.planned
        if self.place.by_threads:
            for stored in planned.stored:
                stored.view()  # computed weights are made once, not for every look at a block
        dtypes = [self.dtype] if self.dtype else [stored.read_as for stored in planned.stored]
        return Weight(
            planned.name,
            region,
            functools.reduce(torch.promote_types, dtypes),
            len(planned.experts),
            planned.base is not None,
            planned.input_dim,
            self,
            planned.dtype,
            self._place_of_weights,
        )

    @property
    def _place_of_weights(self) -> Place:
        """Where whole weights are looked at: on the CPU sums have one order, whatever the block."""
        if self.place.by_threads:
            return dataclasses.replace(CPU, room=self.place.room)
        return dataclasses.replace(self.place, room=0)  # taken by the inputs

    def _slot(self, read: Sequence[Tensor], region: Region) -> Slot:
        if self.dtype is not None:
            read = [found.to(self.dtype) for found in read]
        has_base = self.planned.base is not None
        factors = [getattr(expert, "factors", None) for expert in self.planned.experts]

        def placed(each: LowRank | None) -> LowRank | None:
            return None if each is None else each.to(self.place.device)

        return Slot(
            self.planned.name,
            read[0] if has_base else None,
            tuple(read[has_base:]),
            stats=self._stats_of(region),
            factors=tuple(map(placed, factors)),
            measured=self.measured,
            seed=self._seed,
            input_dim=self.planned.input_dim,
            region=region,
        )

    def release(self, region: Region) -> None:
        """Hand the pages of a region back to the system, in every source and statistic."""
        span = region.span
        for stored in (*self.planned.stored, *itertools.chain(*self.statistics.values())):
            if stored is not None:
                stored.release(*((span or ()) if stored.shape == region.shape else ()))

    def _stats_of(self, region: Region) -> dict[str, tuple[Tensor | None, ...]]:
        def of(stored: SourceTensor | None) -> Tensor | None:
            if stored is None:
                return None
            if stored.shape == region.shape:
                return self.bring([stored], region)[0]
            return stored.view().to(self.place.device)

        return {name: tuple(map(of, each)) for name, each in self.statistics.items()}

    @cached_property
    def statistics(self) -> dict[str, tuple[SourceTensor | None, ...]]:
        """Calibration statistics of this weight, by name, one per expert."""
        sources, name = self._sources, self.planned.name
        n_experts = len(self._plan.experts)
        return {
            asked: tuple(sources.of_weight(asked, expert, name) for expert in range(n_experts))
            for asked in self._plan.method.statistics(self.planned.kernel)
        }


class HeldReader:
    """Regions of one weight of which a box is in memory, on the device of a place."""

    def __init__(self, reader: WeightReader, box: Region) -> None:
        self._reader, self.place = reader, reader.place
        self._held = reader.read(box).weight(self.place)
        self.measured: Mapping[str, Tensor] = {}

    def read(self, region: Region) -> Slot:
        """View a region of the box."""
        return dataclasses.replace(self._held.part(region), measured=self.measured)

    def walk(self, regions: Iterable[Region]) -> Iterator[Slot]:
        """View regions of the box in turn."""
        return map(self.read, regions)

    def sample(self, pick: Callable[[Tensor], Tensor], positions: Tensor) -> Slot:
        """View a few elements, if the box is the whole weight; see `merge_plugins.api.Reader`."""
        return self._held.reader.sample(pick, positions)

    def weight(self, region: Region) -> Weight:
        """Return the weight, or one matrix of it, whose parts are views."""
        return dataclasses.replace(self._reader.weight(region), reader=self)

    def release(self, region: Region) -> None:
        """Do nothing: the files' pages were released when the box was read."""


AnyReader: TypeAlias = WeightReader | HeldReader
