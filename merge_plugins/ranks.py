"""Ranks of magnitudes within rows.

One sort of integers that hold magnitude and position: three times faster than torch's argsort,
which sorts pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from merge_plugins.selection import INTEGERS


def by_rank(x: Tensor, values: Tensor) -> Tensor:
    """Give each entry the value at its rank in its row: ``values[0]`` for the largest |x|.

    x: any float [*shape, n], ranked as float32 at most; values: [n]; the result has x's shape and
    the dtype of ``values``. Of equal magnitudes the first in memory counts as the largest, as it
    does in `merge_plugins.selection`.
    """
    ranked = x.contiguous() if x.dtype.itemsize < 8 else x.float()
    bits = ranked.view(INTEGERS[ranked.dtype.itemsize])
    size = max(1, (x.shape[-1] - 1).bit_length())
    pairs = torch.int32 if bits.dtype.itemsize == 2 and size <= 16 else torch.int64
    downwards = bits.bitwise_not().bitwise_and_(torch.iinfo(bits.dtype).max).to(pairs)
    downwards.bitwise_left_shift_(size).bitwise_or_(torch.arange(x.shape[-1], dtype=pairs))
    downwards.numpy().sort(axis=-1)
    order = downwards.bitwise_and_((1 << size) - 1).to(torch.int64)
    return torch.empty_like(x, dtype=values.dtype).scatter_(-1, order, values.expand(x.shape))
