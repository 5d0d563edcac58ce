"""Lazy merged tensors: each is computed when it is indexed, block by block, and never stored."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from merge_plugins.api import (
    ELEMENT,
    MATRIX,
    ROW,
    Branch,
    Granularity,
    Index,
    Kernel,
    Measures,
    MergesMatrices,
    Prepares,
    Region,
    Routes,
    Slot,
    Weight,
    as_region,
    granularity_of,
    holds_matrices,
)
from merge_plugins.engine.copied import copied, is_finite
from merge_plugins.engine.reader import WeightReader
from merge_plugins.engine.sources import PlannedSources
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.parallel import BLOCK, alone, block_size, parallel
from merge_plugins.planning import Plan, PlannedTensor
from merge_plugins.plugins import registry
from merge_plugins.weights import held
from merge_plugins.weights.computed import refuse_damage
from merge_plugins.weights.stored import NAMES


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
        """Merge all of it and convert like `torch.Tensor.to`."""
        return self[...].to(*args, **kwargs)

    def __repr__(self) -> str:
        return f"MergedTensor({self.name}, {list(self.shape)}, {self.dtype})"

    def __getitem__(self, index: Index) -> Tensor:
        region = as_region(index, self.planned.shape)
        if self.planned.kernel is None:
            if len(self.planned.stored) > 1:
                return region.of(self._agreed).to(self.dtype, copy=True)
            return copied(self.planned, region, self._merge.plan.recipe.dtype)
        with held(self.planned.stored):
            kernel = self._merge.kernel(self.planned)
            if region.numel == 0:
                return torch.empty(region.sizes, dtype=self.dtype)
            granularity = self.granularity
            if granularity in (ELEMENT, ROW):
                return self._by_blocks(kernel, region, whole_rows=granularity is ROW)
            if granularity is MATRIX:
                return self._by_matrices(cast(MergesMatrices, kernel), region)
            return region.of(self._whole(kernel)).contiguous()

    @property
    def granularity(self) -> Granularity:
        """Into which parts this weight may be cut: what the method declares, if it is merged.

        A method on matrices takes any other weight element by element.
        """
        declared = granularity_of(self.planned.kernel)
        return ELEMENT if declared is MATRIX and not holds_matrices(self.planned) else declared

    @property
    def is_elementwise(self) -> bool:
        """Whether any box of it can be merged alone."""
        return self.planned.kernel is not None and self.granularity is ELEMENT

    def ready(self) -> None:
        """Prepare and measure, so that `box` may be called; the inputs are held."""
        _ = self._ready

    def box(self, region: Region) -> Tensor:
        """Merge a small box of a weight that another merge reads, from inside its threads."""
        return self._merged(self._reader, self._merge.kernel(self.planned), region)

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

        with held(self.planned.stored):
            reader = self._ready
            return alone(compute)

    def _by_blocks(self, kernel: Kernel, region: Region, *, whole_rows: bool) -> Tensor:
        reader = self._ready
        size = block_size(len(self.planned.stored), self._merge.block)
        merged = torch.empty(region.sizes, dtype=self.dtype)

        def merge(block: Region) -> None:
            wanted = block.shared(region)
            result = self._merged(reader, kernel, block)
            merged[wanted.within(region)] = result[wanted.within(block)]
            reader.release(block)

        read = region.rows() if whole_rows else region
        parallel(merge, read.blocks(size, whole_rows=whole_rows))
        reader.release(read)  # a fault maps neighbours too, also of blocks released before
        return merged

    def _by_matrices(self, kernel: MergesMatrices, region: Region) -> Tensor:
        reader = self._ready

        def merge(matrix: Region) -> Tensor:
            weight = reader.weight(matrix)
            weight.map_blocks(self._check_inputs)
            result = kernel.merge_matrix(weight)
            self._check(result, matrix)
            reader.release(matrix)
            return result.to(self.dtype)[region.shared(matrix).within(matrix)]

        matrices = list(region.matrices())
        if len(matrices) == 1:
            return alone(functools.partial(merge, *matrices)).contiguous()
        merged = torch.empty(region.sizes, dtype=self.dtype)
        for matrix in matrices:
            at = region.shared(matrix).within(region)
            merged[at] = alone(functools.partial(merge, matrix))
        return merged

    def _merged(self, reader: WeightReader, kernel: Kernel, block: Region) -> Tensor:
        slot = reader.read(block)
        self._check_inputs(slot)
        result = kernel(slot)
        self._check(result, block)
        return result.to(self.dtype)

    def _whole(self, kernel: Kernel) -> Tensor:
        reader, whole = self._ready, Region.whole(self.planned.shape)

        def merge() -> Tensor:
            for stored in self.planned.stored:
                stored.view()  # computed on every core, and kept for the next line
            result = self._merged(reader, kernel, whole)
            reader.release(whole)
            return result

        return alone(merge)

    @property
    def _ready(self) -> WeightReader:
        """The reader, after the method has measured the whole weight."""
        with self._lock:
            return self._reader

    @cached_property
    def _reader(self) -> WeightReader:
        reader = self._merge.reader(self.planned)
        kernel = self._merge.kernel(self.planned)
        _ = reader.statistics  # here, not in the threads that read blocks
        if isinstance(kernel, Measures):
            reader.measured = kernel.measure(reader.weight(Region.whole(self.planned.shape)))
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

    def _check_inputs(self, slot: Slot) -> None:
        """Refuse NaN and infinity in the inputs, even where the method would drop them."""
        bases = () if slot.maybe_base is None else (slot.maybe_base,)
        if not all(map(is_finite, (*bases, *slot.experts))):
            self._name_the_source()

    def _check(self, result: Tensor, block: Region) -> None:
        """Refuse a result of another shape, or one that overflowed."""
        name = self._merge.plan.method.name
        if result.shape != torch.Size(block.sizes):
            raise MismatchError(
                f"{name} returned {list(result.shape)} for {self.name} {list(block.sizes)}; "
                "a kernel keeps the shape of its slot"
            )
        if not is_finite(result if self.dtype != torch.float16 else result.half()):
            self._name_the_source()  # a NaN that was measured spoils every block of the weight
            raise MismatchError(
                f"{self.name}: {name} gave NaN, infinity or a value beyond {self.dtype} from "
                "finite weights; try smaller weights or out_dtype: float32"
            )

    def _name_the_source(self) -> None:
        """Raise an error that names the source with NaN or infinity, if there is one."""
        for stored in self.planned.stored:
            refuse_damage(stored)


@dataclasses.dataclass
class Merge:
    """A plan being carried out: its tensors, and what they share."""

    plan: Plan
    block: int = BLOCK

    def __post_init__(self) -> None:
        self._prepared: Kernel | None = None
        self._has_prepared = False
        self._lock = threading.Lock()
        self.sources = PlannedSources(self.plan, self._weights)

    def reader(self, planned: PlannedTensor) -> WeightReader:
        """Return a reader of one tensor's inputs."""
        return WeightReader(planned, self.plan, self.sources)

    def _weights(self) -> Iterator[Weight]:
        for planned in self.plan.tensors.values():
            if planned.kernel is not None:
                with held(planned.stored):
                    yield self.reader(planned).weight(Region.whole(planned.shape))

    def kernel(self, planned: PlannedTensor) -> Kernel:
        """Return the kernel of one tensor; a method that prepares does so now, once for all."""
        kernel: Any = planned.kernel
        if not isinstance(kernel, Prepares):
            return cast(Kernel, kernel)
        with self._lock:
            if not self._has_prepared:
                self._prepared, self._has_prepared = self._prepare(), True
        return self._prepared or cast(Kernel, kernel)

    def settled(self) -> dict[str, Any]:
        """Return the method and parameters that a method came down to after it prepared.

        It prepares now, if it has not yet. Empty unless the prepared kernel is itself a registered
        method, as LM-Cocktail's is ``linear``.
        """
        planned = next((t for t in self.plan.tensors.values() if t.kernel is not None), None)
        kernel = planned and self.kernel(planned)
        if kernel is None or kernel is not self._prepared:
            return {}
        for method in registry().methods.values():
            if method.factory is type(kernel):
                values = {p.name: getattr(kernel, p.field) for p in method.parameters.values()}
                return {"merge_method": method.name, "parameters": values}
        return {}

    def _prepare(self) -> Kernel | None:
        different: list[Any] = []
        for planned in self.plan.tensors.values():
            if planned.kernel is not None and planned.kernel not in different:
                different.append(planned.kernel)
        for kernel in different:
            try:
                with held(s for planned in self.plan.tensors.values() for s in planned.stored):
                    prepared: Kernel | None = kernel.prepare(self.sources)
            finally:
                self.sources.drop()
            if prepared is not None and len(different) > 1:
                raise RecipeError(
                    f"{self.plan.method.name} looks at the whole model at once, so each parameter "
                    "needs one value for all tensors: no gradients, no filters"
                )
        return prepared

    def tensors(self) -> dict[str, MergedTensor]:
        """Return every tensor of the merge, not merged yet, in the donor's order."""
        return {name: MergedTensor(t, self) for name, t in self.plan.tensors.items()}
