"""Lazy merged tensors: each is computed when it is indexed, block by block, and never stored."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from merge_plugins.api import (
    ELEMENT,
    Branch,
    Granularity,
    Index,
    Kernel,
    Measures,
    Prepares,
    Region,
    Routes,
    Weight,
    as_region,
)
from merge_plugins.engine.carrier import carrier_to, indexed
from merge_plugins.engine.copied import copied, placed
from merge_plugins.engine.defaults import own_defaults
from merge_plugins.engine.elsewhere import SMALLEST_BLOCK, brought_back, there_or_here
from merge_plugins.engine.guests import blaming
from merge_plugins.engine.measured import remember, remembered
from merge_plugins.engine.meter import Meter, work
from merge_plugins.engine.reader import AnyReader, HeldReader, WeightReader
from merge_plugins.engine.sources import PlannedSources
from merge_plugins.engine.work import Work, granularity, needed
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.parallel import BLOCK, CPU, DEVICE_BLOCK, Place, alone
from merge_plugins.planning import Plan, PlannedTensor
from merge_plugins.plugins import registry
from merge_plugins.ranks import Ranks
from merge_plugins.weights import held
from merge_plugins.weights.stored import NAMES

SHARE = 25
"""Inputs of one weight may take this part of the merge's bytes while it is merged, and on another
device so may what a kernel needs beside a block: with two weights in flight, a tenth."""
SCRATCH = 32
"""Bytes that a kernel needs for each element of a block, about."""


class MergedTensor:
    """One merged tensor, computed when indexed; loaders take it for a stored tensor.

    ``tensor[...]`` merges all of it, ``tensor[a:b, c:d]`` only that box. The bits of an element do
    not depend on the box, on the number of threads, or on the order of calls.
    """

    def __init__(self, planned: PlannedTensor, merge: Merge) -> None:
        self.planned, self._merge = planned, merge
        self.name, self.dtype = planned.name, planned.dtype
        self.shape = torch.Size(planned.shape)
        self.device = torch.device("cpu")
        self.ndim = len(planned.shape)
        self._lock = threading.Lock()
        self._measured: dict[Place, Mapping[str, Tensor]] = {}

    def get_shape(self) -> list[int]:
        """Return the shape, as a safetensors slice does."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Return the name of the dtype, as a safetensors slice does."""
        return NAMES[self.dtype]

    def is_floating_point(self) -> bool:
        """Whether the merged tensor holds floating-point numbers."""
        return self.dtype.is_floating_point

    def numel(self) -> int:
        """Count the elements."""
        return self.shape.numel()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Merge all of it, on the device named if any, and convert like `torch.Tensor.to`."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        return self.on(device or self.device).to(*args, **kwargs)

    def __repr__(self) -> str:
        return f"MergedTensor({self.name}, {list(self.shape)}, {self.dtype})"

    def __getitem__(self, index: Index) -> Tensor:
        return self.on(self.device, index)

    def on(self, device: torch.device, index: Index = ...) -> Tensor:
        """Merge a box on a device, into new memory there.

        Falls back to smaller blocks where the device has too little memory, and to the CPU where
        that does not help or the method cannot run there; the log says so.
        """
        return self._on(device, as_region(index, self.planned.shape))

    def into(self, target: Tensor, index: Index = ...) -> Tensor:
        """Merge a box into memory that exists, on its device, and return that.

        As `on` and ``copy_`` would: rounded to the merge's dtype, then to the target's. Takes the
        memory of a few blocks beside it, unless the method makes the whole box at once. Raises
        `MismatchError` for another shape; after any other error the target holds parts of the box.
        """
        region = as_region(index, self.planned.shape)
        if target.shape != torch.Size(region.sizes):
            has = list(target.shape)
            raise MismatchError(f"{self.name} is {list(region.sizes)}; it does not fit into {has}")
        self._on(target.device, region, target.detach())
        return target

    def _on(self, device: torch.device, region: Region, into: Tensor | None = None) -> Tensor:
        began, meter = time.monotonic(), self._merge.meter
        found = self._by_place(device, region, into)
        if meter is not None:
            meter.note(work(self.planned, region.numel), began)
        return found

    @own_defaults()
    def _by_place(self, device: torch.device, region: Region, into: Tensor | None) -> Tensor:
        place = self._merge.place(indexed(device))
        if place.by_threads:
            with self._blaming():
                return self._merged(region, place, into)

        def merged(there: Place) -> Tensor:
            if there is self._merge.here:
                return self._merged(region, there, into)
            with carrier_to(there.device).in_flight:
                return self._merged(region, there, into)

        method = self._merge.plan.method.name
        with self._blaming():
            return there_or_here(merged, place, self._merge.here, method).to(device)

    def _blaming(self) -> AbstractContextManager[None]:
        return blaming(self._merge.plan.method, self.planned.kernel, f"on {self.name}")

    def _merged(self, region: Region, place: Place, into: Tensor | None) -> Tensor:
        planned = self.planned
        if planned.kernel is None and len(planned.stored) > 1:
            agreed = region.of(self._agreed)
            return placed(agreed.to(place.device, self.dtype, copy=into is None), into)
        with held(planned.stored):
            if planned.kernel is None:
                return copied(self._merge.reader(planned, place), region, into)
            kernel = self._merge.kernel(planned, place)
            if region.numel == 0:
                return placed(
                    torch.empty(region.sizes, dtype=self.dtype, device=place.device), into
                )
            if place.by_threads and region == Region.whole(planned.shape):
                return self._at_once(kernel, into)
            if place.by_threads:
                return self._work(kernel, self._ready).merge(region, into)
            reader = self._near(kernel, region, place)
            with carrier_to(place.device).merging():
                self._measure(kernel, reader)
                return self._work(kernel, reader).merge(region, into)

    def _work(self, kernel: Kernel, reader: AnyReader) -> Work:
        return Work(self.planned, kernel, reader, self._merge.plan.method)

    def _at_once(self, kernel: Kernel, into: Tensor | None) -> Tensor:
        """Merge the whole weight on the CPU; what is kept of it meanwhile is forgotten."""
        reader, whole = self._merge.reader(self.planned, self._merge.at_once), self.planned.shape
        _ = reader.statistics
        with self._lock:
            self._measure(kernel, reader)
        try:
            return self._work(kernel, reader).merge(Region.whole(whole), into)
        finally:
            reader.release(Region.whole(whole))
            if any(each.shape == self.shape for each in reader.measured.values()):
                self._measured.pop(reader.place, None)

    def _near(self, kernel: Kernel, region: Region, place: Place) -> AnyReader:
        """Read all that is needed onto the device if there is room for it, else read it in parts.

        What is measured and merged is then read once.
        """
        reader = self._merge.reader(self.planned, place)
        _ = reader.statistics
        box = needed(self.planned, region)
        if isinstance(kernel, Measures) and not self._is_measured(kernel, place):
            box = Region.whole(self.planned.shape)
        n_bytes = sum(box.numel * stored.read_as.itemsize for stored in self.planned.stored)
        return HeldReader(reader, box) if n_bytes <= place.room else reader

    def _measure(self, kernel: Kernel, reader: AnyReader) -> None:
        """Let the method measure the whole weight, once for each place."""
        if isinstance(kernel, Measures):
            if not self._is_measured(kernel, reader.place):
                measured = kernel.measure(reader.weight(Region.whole(self.planned.shape)))
                self._keep(kernel, reader.place, measured)
            reader.measured = self._measured[reader.place]

    def _keep(self, kernel: Any, place: Place, measured: Mapping[str, Tensor]) -> None:
        self._measured[place] = measured
        remember(self.planned, self._merge.plan, place, kernel, measured)

    @own_defaults()
    def measure_with(self, ranks: Ranks, device: torch.device) -> None:
        """Measure the weight for merges on a device, other ranks their parts of it; call on all.

        Does nothing where nothing is measured, or too little to share. Where one rank cannot, each
        measures alone when it merges.
        """
        if self.planned.kernel is None:
            return
        place = self._merge.place(indexed(device))
        kernel: Any = self._merge.kernel_with(ranks, self.planned, place)
        if not isinstance(kernel, Measures):
            return
        with held(self.planned.stored):
            reader = self._merge.reader(self.planned, place)
            weight = shared(reader.weight(Region.whole(self.planned.shape)), ranks)
            if weight.ranks is not None:
                _ = reader.statistics
                measure = functools.partial(self._measured_with, ranks, kernel, weight, place)
                measured = ranks.all_or_none(measure)
                if measured is not None:
                    self._keep(kernel, place, measured)

    def _measured_with(
        self, ranks: Ranks, kernel: Any, weight: Weight, place: Place
    ) -> Mapping[str, Tensor]:
        known = functools.partial(self._is_measured, kernel, place)
        if all(ranks.together(known, work=f"{self.name}: known")):
            return self._measured[place]
        if place.by_threads:
            return cast(Mapping[str, Tensor], kernel.measure(weight))
        carrier = carrier_to(place.device)
        with carrier.in_flight, carrier.merging():
            return cast(Mapping[str, Tensor], kernel.measure(weight))

    def _is_measured(self, kernel: Kernel, place: Place) -> bool:
        """Whether it is known what the method measures at a place, also of an earlier merge."""
        if place not in self._measured:
            found = remembered(self.planned, self._merge.plan, place, kernel)
            if found is None and place.by_threads:
                found = self._measured.get(self._merge.here)
            if found is not None:
                self._measured[place] = found
        return place in self._measured

    @property
    def granularity(self) -> Granularity:
        """Into which parts this weight may be cut."""
        return granularity(self.planned)

    @property
    def is_elementwise(self) -> bool:
        """Whether any box of it can be merged alone."""
        return self.planned.kernel is not None and self.granularity is ELEMENT

    def ready(self) -> None:
        """Prepare and measure, so that `box` may be called; the inputs are held."""
        with self._blaming():
            _ = self._ready

    def box(self, region: Region) -> Tensor:
        """Merge a small box of a weight that another merge reads, from inside its threads."""
        with self._blaming():
            return self._work(self._merge.kernel(self.planned), self._reader).block(region)

    @own_defaults()
    def branches(self, device: torch.device) -> Sequence[Branch]:
        """Compute each expert's branch of this weight, on ``device``, from the whole weight."""
        prepared = self._merge.kernel(self.planned)
        routes = prepared if isinstance(prepared, Routes) else self.planned.kernel
        method, shared = cast(Routes, routes), self[...]
        whole = Region.whole(self.planned.shape)

        def compute() -> Sequence[Branch]:
            slot = reader.read(whole)
            base = None if slot.maybe_base is None else slot.maybe_base.to(device)
            experts = tuple(expert.to(device) for expert in slot.experts)
            placed = dataclasses.replace(slot, maybe_base=base, experts=experts)
            branches = method.branches(placed, shared.to(device))
            reader.release(whole)
            return branches

        with held(self.planned.stored), self._blaming():
            reader = self._ready
            return alone(compute)

    @property
    def _ready(self) -> WeightReader:
        """The reader, after the method has measured the whole weight."""
        with self._lock:
            return self._reader

    @cached_property
    def _reader(self) -> WeightReader:
        reader = self._merge.reader(self.planned, self._merge.here)
        _ = reader.statistics  # here, not in the threads that read blocks
        self._measure(self._merge.kernel(self.planned), reader)
        return reader

    @cached_property
    def _agreed(self) -> Tensor:
        """The value of a buffer, which must be the same in all models."""
        first, *others = self.planned.stored
        for other in others:
            if not torch.equal(first.view(), other.view()):
                raise MismatchError(
                    f"{self.name} is no weight and cannot be averaged, and it differs between "
                    f"{first.file} and {other.file}"
                )
        return first.view()


def shared(weight: Weight, ranks: Ranks | None) -> Weight:
    """Let other ranks look at parts of a weight, if it has more than one block."""
    return dataclasses.replace(weight, ranks=ranks) if len(weight.blocks()) > 1 else weight


@dataclasses.dataclass
class Merge:
    """A plan being carried out: its tensors, and what they share."""

    plan: Plan
    block: int = BLOCK

    def __post_init__(self) -> None:
        self.here = dataclasses.replace(CPU, block=self.block)
        self.places = {CPU.device: self.here}
        self._prepares_at = self.here
        self._prepared: Kernel | None = None
        self._has_prepared = False
        self.meter: Meter | None = None
        self._lock = threading.Lock()
        self._ranks: Ranks | None = None
        self.sources = PlannedSources(self.plan, self._weights)

    def place(self, device: torch.device) -> Place:
        """Return how weights are merged on a device: in little memory beside the merge itself."""
        if device not in self.places:
            share = self.share
            block = min(DEVICE_BLOCK, max(SMALLEST_BLOCK, share // SCRATCH))
            self.places[device] = Place(device, block, by_threads=False, room=share)
            self.sources.device = self.sources.device or device
        return self.places[device]

    @cached_property
    def share(self) -> int:
        """Bytes that the inputs of a weight may take beside the merge."""
        weights = self.plan.tensors.values()
        return sum(math.prod(t.shape) * t.dtype.itemsize for t in weights) // SHARE

    @property
    def at_once(self) -> Place:
        """The CPU, for a whole weight: what is kept of it meanwhile is forgotten soon."""
        return dataclasses.replace(self.here, room=self.share)

    def reader(self, planned: PlannedTensor, place: Place = CPU) -> WeightReader:
        """Return a reader of one tensor's inputs."""
        return WeightReader(planned, self.plan, self.sources, place)

    def _weights(self) -> Iterator[Weight]:
        for planned in self.plan.tensors.values():
            if planned.kernel is not None:
                with held(planned.stored):
                    reader = self.reader(planned, self._prepares_at)
                    yield shared(reader.weight(Region.whole(planned.shape)), self._ranks)

    def kernel(self, planned: PlannedTensor, place: Place | None = None) -> Kernel:
        """Return the kernel of one tensor; a method that prepares does so now, once for all.

        ``place``: where it prepares if it reads weights alone (default: on the CPU).
        """
        kernel: Any = planned.kernel
        if not isinstance(kernel, Prepares):
            return cast(Kernel, kernel)
        with self._lock:
            if not self._has_prepared:
                self._prepared, self._has_prepared = self._prepare(place or self.here), True
        return self._prepared or cast(Kernel, kernel)

    def kernel_with(self, ranks: Ranks, planned: PlannedTensor, place: Place) -> Kernel | None:
        """Return the kernel of one tensor, prepared with other ranks if it reads weights alone.

        None if it is not prepared yet, because a rank could not.
        """
        kernel: Any = planned.kernel
        if self._has_prepared or not isinstance(kernel, Prepares):
            return self.kernel(planned, place)
        if self.plan.method.reads_data(kernel):
            return None
        self._ranks = ranks
        try:
            return ranks.all_or_none(lambda: self.kernel(planned, place))
        finally:
            self._ranks = None

    def settled(self, device: torch.device | None = None) -> dict[str, Any]:
        """Return the method and parameters that a method came down to after it prepared.

        It prepares now, if it has not yet; ``device``: where the merge goes to, if that is one.
        Empty unless the prepared kernel is itself a registered method, as LM-Cocktail's is
        ``linear``.
        """
        planned = next((t for t in self.plan.tensors.values() if t.kernel is not None), None)
        place = None if device is None else self.place(indexed(device))
        kernel = planned and self.kernel(planned, place)
        if kernel is None or kernel is not self._prepared:
            return {}
        for method in registry().methods.values():
            if method.factory is type(kernel):
                values = {p.name: getattr(kernel, p.field) for p in method.parameters.values()}
                return {"merge_method": method.name, "parameters": values}
        return {}

    @own_defaults()
    def _prepare(self, place: Place) -> Kernel | None:
        different: list[Any] = []
        for planned in self.plan.tensors.values():
            if planned.kernel is not None and planned.kernel not in different:
                different.append(planned.kernel)
        for kernel in different:
            try:
                every = (s for planned in self.plan.tensors.values() for s in planned.stored)
                with held(every), blaming(self.plan.method, kernel, "in prepare"):
                    prepared = self._prepared_by(kernel, place)
            finally:
                self.sources.drop()
            if prepared is not None and not callable(prepared):
                raise MismatchError(
                    f"{self.plan.method}: prepare returns a kernel or None; got "
                    f"{type(prepared).__name__}"
                )
            if prepared is not None and len(different) > 1:
                raise RecipeError(
                    f"{self.plan.method.name} looks at the whole model at once, so each parameter "
                    "needs one value for all tensors: no gradients, no filters"
                )
        return prepared

    def _prepared_by(self, kernel: Any, place: Place) -> Kernel | None:
        """Let a kernel prepare: on a device, or by the CPU's blocks if live models are run."""
        if place.by_threads or self.plan.method.reads_data(kernel):
            return cast(Kernel | None, kernel.prepare(self.sources))

        def prepared(there: Place) -> Kernel | None:
            self._prepares_at = there
            if there is self.here:
                return cast(Kernel | None, kernel.prepare(self.sources))
            with carrier_to(there.device).merging():
                return cast(Kernel | None, brought_back(kernel.prepare(self.sources)))

        try:
            return there_or_here(prepared, place, self.here, self.plan.method.name)
        finally:
            self._prepares_at = self.here

    def tensors(self) -> dict[str, MergedTensor]:
        """Return every tensor of the merge, not merged yet, in the donor's order."""
        return {name: MergedTensor(t, self) for name, t in self.plan.tensors.items()}
