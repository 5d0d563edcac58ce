"""Merge a box of a weight, cut as finely as the method allows, where its inputs are read to."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from merge_plugins.api import (
    ELEMENT,
    MATRIX,
    ROW,
    Granularity,
    Kernel,
    MergesMatrices,
    Region,
    Slot,
    granularity_of,
    holds_matrices,
)
from merge_plugins.engine.copied import is_finite, placed
from merge_plugins.engine.reader import AnyReader
from merge_plugins.errors import MismatchError
from merge_plugins.memory import new_memory
from merge_plugins.planning import PlannedTensor
from merge_plugins.plugins import Method
from merge_plugins.weights.damage import refuse_damage


def granularity(planned: PlannedTensor) -> Granularity:
    """Return into which parts a weight may be cut: what its method declares, if it is merged.

    A method on matrices takes any other weight element by element.
    """
    declared = granularity_of(planned.kernel)
    return ELEMENT if declared is MATRIX and not holds_matrices(planned) else declared


def needed(planned: PlannedTensor, region: Region) -> Region:
    """Extend a box to all that must be read to merge it."""
    declared = granularity(planned)
    if declared is ELEMENT:
        return region
    if declared is ROW:
        return region.rows()
    whole = Region.whole(planned.shape)
    if declared is not MATRIX:
        return whole
    return Region(whole.shape, (*region.bounds[:-2], *whole.bounds[-2:]))


@dataclass(frozen=True)
class Work:
    """What merges boxes of one weight: its kernel, and a reader that has what was measured."""

    planned: PlannedTensor
    kernel: Kernel
    reader: AnyReader
    method: Method

    def merge(self, region: Region, into: Tensor | None = None) -> Tensor:
        """Merge a box: [*region.sizes], rounded to the weight's dtype, on the reader's device.

        ``into``: memory of that shape, in any dtype on any device, to write it to instead of to new
        memory.
        """
        declared = granularity(self.planned)
        if declared in (ELEMENT, ROW):
            return self._by_blocks(region, self._room(region, into), whole_rows=declared is ROW)
        if declared is MATRIX:
            return self._by_matrices(region, into)
        return placed(region.of(self._whole()), into)

    def block(self, block: Region) -> Tensor:
        """Merge a box that may be merged at once."""
        return self._merged(self.reader.read(block)).to(self.planned.dtype)

    def _merged(self, slot: Slot) -> Tensor:
        if not getattr(self.kernel, "shows_damage", False):
            self._check_inputs(slot)
        result = self.kernel(slot)
        self._check(result, slot.box)
        return result

    def _by_blocks(self, region: Region, merged: Tensor, *, whole_rows: bool) -> Tensor:
        def merge(slot: Slot) -> None:
            wanted = slot.box.shared(region)
            result = self._merged(slot)[wanted.within(slot.box)]
            if (merged.dtype, merged.device) != (self.planned.dtype, result.device):
                result = result.to(self.planned.dtype)
            merged[wanted.within(region)] = result

        read, place = region.rows() if whole_rows else region, self.reader.place
        blocks = read.blocks(place.block_size(len(self.planned.stored)), whole_rows=whole_rows)
        place.through(self.reader.walk, merge, blocks)
        self.reader.release(read)  # a fault maps neighbours too, also of blocks released before
        return merged

    def _by_matrices(self, region: Region, into: Tensor | None) -> Tensor:
        kernel, place = cast(MergesMatrices, self.kernel), self.reader.place

        def merge(matrix: Region) -> Tensor:
            weight = self.reader.weight(matrix)
            weight.map_blocks(self._check_inputs)
            result = kernel.merge_matrix(weight)
            self._check(result, matrix)
            self.reader.release(matrix)
            return result.to(self.planned.dtype)[region.shared(matrix).within(matrix)]

        matrices = list(region.matrices())
        if len(matrices) == 1:
            return placed(place.alone(functools.partial(merge, *matrices)), into)
        merged = self._room(region, into)
        for matrix in matrices:
            at = region.shared(matrix).within(region)
            merged[at] = place.alone(functools.partial(merge, matrix))
        return merged

    def _whole(self) -> Tensor:
        whole = Region.whole(self.planned.shape)

        def merge() -> Tensor:
            _ = self.reader.weight(whole)  # computed on every core, and kept for the next line
            result = self.block(whole)
            self.reader.release(whole)
            return result

        return self.reader.place.alone(merge)

    def _room(self, region: Region, into: Tensor | None) -> Tensor:
        if into is not None:
            return into
        return new_memory(region.sizes, self.planned.dtype, self.reader.place.device)

    def _check_inputs(self, slot: Slot) -> None:
        """Refuse NaN and infinity in the inputs, even where the method would drop them."""
        bases = () if slot.maybe_base is None else (slot.maybe_base,)
        if not all(map(is_finite, (*bases, *slot.experts))):
            self._name_the_source()

    def _check(self, result: Tensor, block: Region) -> None:
        """Refuse a result that is no tensor, of another shape or kind, or that overflowed."""
        if not isinstance(result, Tensor) or not result.is_floating_point():
            kind = str(result.dtype) if isinstance(result, Tensor) else type(result).__name__
            raise MismatchError(
                f"{self.method} returned {kind} for {self.planned.name}; a kernel returns a tensor "
                "of floating-point numbers, float32 as a rule"
            )
        if result.shape != torch.Size(block.sizes):
            raise MismatchError(
                f"{self.method} returned {list(result.shape)} for {self.planned.name} "
                f"{list(block.sizes)}; a kernel keeps the shape of its slot"
            )
        if not is_finite(result if self.planned.dtype != torch.float16 else result.half()):
            self._name_the_source()  # a NaN that was measured spoils every block of the weight
            raise MismatchError(
                f"{self.planned.name}: {self.method} gave NaN, infinity or a value beyond "
                f"{self.planned.dtype} from finite weights; try smaller weights or "
                "out_dtype: float32"
            )

    def _name_the_source(self) -> None:
        """Raise an error that names the source with NaN or infinity, if there is one."""
        for stored in self.planned.stored:
            refuse_damage(stored)
