"""Copy tensors of one model instead of merging them: checked, cast, else the file's own pages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.engine.reader import WeightReader
from merge_plugins.errors import MismatchError
from merge_plugins.parallel import BLOCK, parallel
from merge_plugins.planning.plan import MERGEABLE
from merge_plugins.weights import SourceTensor, StoredTensor
from merge_plugins.weights.damage import refuse_damage


def copied(reader: WeightReader, region: Region) -> Tensor:
    """Copy a box of a weight that is not merged; all of a stored weight takes no memory.

    Raises for NaN, infinity, and values beyond the dtype. Requires the source to be held.
    """
    planned, read_as = reader.planned, reader.dtype
    (source,) = planned.stored
    kept, is_own = _checked(source, reader, region)
    if read_as and source.dtype in MERGEABLE:
        kept = kept.to(read_as)
    result = kept.to(planned.dtype, copy=not is_own)
    if result.dtype != source.dtype and not is_finite(result):
        raise MismatchError(
            f"{planned.name} holds values beyond {result.dtype}; set out_dtype: float32"
        )
    return result


def _checked(source: SourceTensor, reader: WeightReader, region: Region) -> tuple[Tensor, bool]:
    """Read a box, and whether its memory is nobody else's."""
    mergeable = source.dtype in MERGEABLE
    if not reader.place.by_threads:
        (brought,) = reader.bring([source], region)
        if mergeable and not is_finite(brought):
            refuse_damage(source)
        return brought, True
    if mergeable and not _is_finite(source, region):
        refuse_damage(source)
    if isinstance(source, StoredTensor) and region == Region.whole(source.shape):
        return source.private(), True
    return source.read(region), False


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; their sum is tried first, which is ten times faster."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def _is_finite(source: SourceTensor, region: Region) -> bool:
    if not region.numel:
        return True
    return all(parallel(lambda box: is_finite(source.read(box)), region.blocks(BLOCK)))
