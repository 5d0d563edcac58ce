"""Copy tensors of one model instead of merging them: checked, cast, else the file's own pages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.errors import MismatchError
from merge_plugins.parallel import BLOCK, parallel
from merge_plugins.planning import PlannedTensor
from merge_plugins.planning.plan import MERGEABLE
from merge_plugins.weights import SourceTensor, StoredTensor, held
from merge_plugins.weights.computed import refuse_damage


def copied(planned: PlannedTensor, region: Region, read_as: str | None) -> Tensor:
    """Copy a box of a weight that is not merged; all of a stored weight takes no memory.

    ``read_as``: the recipe's ``dtype``. Raises for NaN, infinity, and values beyond the dtype.
    """
    (source,) = planned.stored
    with held([source]):
        if source.dtype in MERGEABLE and not _is_finite(source, region):
            refuse_damage(source)
        kept, is_own = source.read(region), False
        if isinstance(source, StoredTensor) and region == Region.whole(source.shape):
            kept, is_own = source.private(), True
        if read_as and source.dtype in MERGEABLE:
            kept = kept.to(getattr(torch, read_as))
        result = kept.to(planned.dtype, copy=not is_own)
    if result.dtype != source.dtype and not is_finite(result):
        raise MismatchError(
            f"{planned.name} holds values beyond {result.dtype}; set out_dtype: float32"
        )
    return result


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; their sum is tried first, which is ten times faster."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def _is_finite(source: SourceTensor, region: Region) -> bool:
    if not region.numel:
        return True
    return all(parallel(lambda box: is_finite(source.read(box)), region.blocks(BLOCK)))
