"""Copy tensors of one model instead of merging them: checked, cast, else the file's own pages."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.engine.reader import WeightReader
from merge_plugins.errors import MismatchError
from merge_plugins.memory import new_memory
from merge_plugins.parallel import BLOCK, parallel
from merge_plugins.planning.plan import MERGEABLE
from merge_plugins.weights import SourceTensor, StoredTensor
from merge_plugins.weights.damage import refuse_damage


def copied(reader: WeightReader, region: Region, into: Tensor | None = None) -> Tensor:
    """Copy a box of a weight that is not merged; all of a stored weight takes no memory.

    ``into``: memory of the box's shape to copy it to. Raises for NaN, infinity, and values beyond
    the dtype. Requires the source to be held.
    """
    planned, place = reader.planned, reader.place
    (source,) = planned.stored
    mergeable = source.dtype in MERGEABLE
    read_as = reader.dtype if mergeable and reader.dtype else source.read_as
    if into is None:
        is_file = place.by_threads and isinstance(source, StoredTensor)
        as_stored = source.dtype == read_as == planned.dtype
        if is_file and as_stored and region == Region.whole(source.shape):
            if mergeable and not _is_finite(source, region):
                refuse_damage(source)
            return cast(StoredTensor, source).private()
        into = new_memory(region.sizes, planned.dtype, place.device)

    def copy(block: Region) -> None:
        (found,) = reader.bring([source], block)
        if mergeable and not is_finite(found):
            refuse_damage(source)
        kept = found.to(read_as).to(planned.dtype)
        if planned.dtype != source.dtype and not is_finite(kept):
            raise MismatchError(
                f"{planned.name} holds values beyond {planned.dtype}; set out_dtype: float32"
            )
        into[block.within(region)] = kept
        reader.release(block)

    place.map(copy, region.blocks(place.block_size(1)))
    return into


def placed(result: Tensor, into: Tensor | None) -> Tensor:
    """Copy a result into memory that is given, or else lay it out in memory of its own."""
    return result.contiguous() if into is None else into.copy_(result)


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; their sum is tried first, which is ten times faster."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def _is_finite(source: SourceTensor, region: Region) -> bool:
    if not region.numel:
        return True
    return all(parallel(lambda box: is_finite(source.read(box)), region.blocks(BLOCK)))
