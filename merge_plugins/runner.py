"""Merged tensors that exist only while somebody looks at them."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import EllipsisType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from merge_plugins.api import Batch, Kernel, Measures, Prepares, Region, Slot
from merge_plugins.blocks import BLOCK, block_size, parallel
from merge_plugins.checkpoint import NAMES
from merge_plugins.errors import CheckpointError, MismatchError, RecipeError
from merge_plugins.plan import Plan, PlannedTensor, plan
from merge_plugins.recipe import Recipe

Index = EllipsisType | slice | tuple[slice, ...]
_WHOLE = threading.Lock()
"""A method that takes whole weights runs one at a time: memory stays one weight of every model."""


class MergedTensor:
    """One merged tensor, computed when indexed; what a loader expects of a stored tensor.

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
        """Shape, as a safetensors slice says it."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Dtype, as a safetensors slice says it."""
        return NAMES[self.dtype]

    def is_floating_point(self) -> bool:
        """Whether the merged tensor holds floating-point numbers."""
        return self.dtype.is_floating_point

    def numel(self) -> int:
        """Number of elements."""
        return self.shape.numel()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Merge all of it and convert like `torch.Tensor.to`."""
        return self[...].to(*args, **kwargs)

    def __repr__(self) -> str:
        return f"MergedTensor({self.name}, {list(self.shape)}, {self.dtype})"

    def __getitem__(self, index: Index) -> Tensor:
        region = as_region(index, self.planned.shape)
        if self.planned.kernel is None:
            return region.of(self._agreed).clone()
        kernel = self._merge.kernel(self.planned)
        if not self._merge.plan.method.is_elementwise(kernel):
            return region.of(self._whole(kernel)).contiguous()
        if region.numel == 0:
            return torch.empty(region.sizes, dtype=self.dtype)
        return self._by_blocks(kernel, region)

    def _by_blocks(self, kernel: Kernel, region: Region) -> Tensor:
        reader = self._ready
        size = block_size(len(self.planned.stored), self._merge.block)
        merged = torch.empty(region.sizes, dtype=self.dtype)
        corner = [start for start, _ in region.bounds]

        def merge(block: Region) -> None:
            slot = reader.read(block)
            box = tuple(slice(a - c, b - c) for (a, b), c in zip(block.bounds, corner, strict=True))
            result = kernel(slot)
            self._check(slot, result, block)
            merged[box] = result
            reader.release(block)

        parallel(merge, region.blocks(size))
        reader.release(region)  # a fault maps neighbours too, also of blocks released before
        return merged

    def _whole(self, kernel: Kernel) -> Tensor:
        with _WHOLE:
            whole = Region.whole(self.planned.shape)
            slot = self._ready.read(whole)
            result = kernel(slot)
            self._check(slot, result, whole)
            self._ready.release(whole)
            return result.to(self.dtype)

    @property
    def _ready(self) -> _Reader:
        """The reader, once what the method measures of the whole weight is known."""
        with self._lock:
            return self._reader

    @cached_property
    def _reader(self) -> _Reader:
        reader = _Reader(self.planned, self._merge.plan.recipe)
        kernel = self._merge.kernel(self.planned)
        if isinstance(kernel, Measures):
            reader.measured = kernel.measure(reader.slot())
        return reader

    @cached_property
    def _agreed(self) -> Tensor:
        """A buffer's value, on which all models agree."""
        first, *others = self.planned.stored
        for other in others:
            if not torch.equal(first.view(), other.view()):
                raise MismatchError(
                    f"{self.name} is no weight and cannot be averaged, and it differs between "
                    f"{first.file} and {other.file}"
                )
        return first.view()

    def _check(self, slot: Slot, result: Tensor, block: Region) -> None:
        """Refuse NaN and infinity, also where the method would have dropped them."""
        name = self._merge.plan.method.name
        if result.shape != torch.Size(block.sizes):
            raise MismatchError(
                f"{name} returned {list(result.shape)} for {self.name} {list(block.sizes)}; "
                "a kernel keeps the shape of its slot"
            )
        bases = () if slot.maybe_base is None else (slot.maybe_base,)
        if not all(map(_is_finite, (*bases, *slot.experts))):
            self._name_the_source()
        if not _is_finite(result if self.dtype != torch.float16 else result.half()):
            self._name_the_source()  # what was measured spoils every block of the weight
            raise MismatchError(
                f"{self.name}: {name} gave NaN, infinity or a value beyond {self.dtype} from "
                "finite weights; try smaller weights or out_dtype: float32"
            )

    def _name_the_source(self) -> None:
        """Raise if a source holds NaN or infinity."""
        for stored in self.planned.stored:
            bad = torch.isfinite(stored.view()).logical_not_().reshape(-1)
            if bad.any():
                at = bad.to(torch.uint8).argmax()
                first = [int(i) for i in torch.unravel_index(at, stored.shape)]
                raise CheckpointError(
                    f"{stored.file}: {stored.name} holds NaN or infinity, first at {first}. "
                    "Repair or leave out this model."
                )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all are finite; a sum says so ten times faster, unless it overflows itself."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def as_region(index: Index, shape: Sequence[int]) -> Region:
    """Return the box that ``...``, a slice or a tuple of slices picks; steps must be 1."""
    parts = index if isinstance(index, tuple) else (index,)
    given = [part for part in parts if part is not Ellipsis]
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    filled = [*parts[:at], *[slice(None)] * (len(shape) - len(given)), *parts[at + 1 :]]
    bounds = []
    for part, size in zip(filled, shape, strict=True):
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError(f"a merged tensor is indexed with plain slices, got {index!r}")
        start, stop, _ = part.indices(size)
        bounds.append((start, max(start, stop)))
    return Region(tuple(shape), tuple(bounds))


class _Reader:
    """Regions of one weight in every model, in the recipe's dtype."""

    def __init__(self, planned: PlannedTensor, recipe: Recipe) -> None:
        self._planned, self._seed = planned, recipe.seed
        self._dtype: torch.dtype | None = getattr(torch, recipe.dtype) if recipe.dtype else None
        self.measured: Mapping[str, Tensor] = {}

    def read(self, region: Region) -> Slot:
        base, experts = self._whole
        return Slot(
            self._planned.name,
            None if base is None else self.convert(region.of(base)),
            tuple(self.convert(region.of(expert)) for expert in experts),
            measured=self.measured,
            seed=self._seed,
            region=region,
        )

    def slot(self) -> Slot:
        """The whole weight, unread: for looking at it block by block."""
        base, experts = self._whole
        return Slot(self._planned.name, base, experts, seed=self._seed, reader=self)

    def convert(self, stored: Tensor) -> Tensor:
        return stored if self._dtype is None else stored.to(self._dtype)

    def release(self, region: Region) -> None:
        span = region.span
        for stored in self._planned.stored:
            stored.release(*(span or ()))

    @cached_property
    def _whole(self) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Base and experts, mapped but not read."""
        base = self._planned.base
        experts = tuple(expert.view() for expert in self._planned.experts)
        return None if base is None else base.view(), experts


@dataclasses.dataclass
class Merge:
    """A plan being carried out."""

    plan: Plan
    block: int = BLOCK

    def __post_init__(self) -> None:
        self._prepared: Kernel | None = None
        self._looked = False
        self._lock = threading.Lock()

    def kernel(self, planned: PlannedTensor) -> Kernel:
        """The kernel of one tensor; a method that looks at all models first does so now, once."""
        kernel: Any = planned.kernel
        if not isinstance(kernel, Prepares):
            return cast(Kernel, kernel)
        with self._lock:
            if not self._looked:
                self._prepared, self._looked = self._prepare(), True
        return self._prepared or cast(Kernel, kernel)

    def _prepare(self) -> Kernel | None:
        different: list[Any] = []
        for planned in self.plan.tensors.values():
            if planned.kernel is not None and planned.kernel not in different:
                different.append(planned.kernel)
        for kernel in different:
            prepared: Kernel | None = kernel.prepare(_Sources(self))
            if prepared is not None and len(different) > 1:
                raise RecipeError(
                    f"{self.plan.method.name} looks at the whole model at once, so each parameter "
                    "needs one value for all tensors: no gradients, no filters"
                )
        return prepared

    def tensors(self) -> dict[str, MergedTensor]:
        """Every tensor of the merge, unread, in the donor's order."""
        return {name: MergedTensor(t, self) for name, t in self.plan.tensors.items()}


class _Sources:
    """What a method that prepares may look at."""

    def __init__(self, merge: Merge) -> None:
        self._merge = merge
        self.names = merge.plan.experts

    def slots(self) -> Iterator[Slot]:
        for planned in self._merge.plan.tensors.values():
            if planned.kernel is not None:
                yield _Reader(planned, self._merge.plan.recipe).slot()

    def module(self, expert: int) -> nn.Module:
        self._unavailable()

    def batches(self) -> Iterator[Batch]:
        self._unavailable()

    def stat(self, name: str, expert: int) -> Mapping[str, Tensor]:
        self._unavailable()

    def _unavailable(self) -> NoReturn:
        raise RecipeError(f"{self._merge.plan.method.name}: calibration data is not supported yet")


def merged_tensors(recipe: Recipe) -> dict[str, MergedTensor]:
    """Return every tensor of the merge by checkpoint name; each is merged when it is indexed."""
    return Merge(plan(recipe)).tensors()
