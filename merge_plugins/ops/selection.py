"""Exact order statistics of magnitudes, in one pass, without sorting or a full-size temporary.

A strided sample brackets the k-th largest magnitude; one pass over the blocks counts what lies
above the bracket and collects the few percent inside it, where the answer is found exactly
[Floyd & Rivest 1975]. Magnitudes are compared as integers: the bits of |x| sort like |x|. Should
the sample mislead, the bracket widens and the pass repeats: never a wrong answer, only a slow one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge_plugins.api import Slot, Weight

SAMPLE, LARGEST_SAMPLE = 1 << 14, 1 << 16
"""Entries in a sample: the more, the fewer entries of the whole lie in its brackets."""
PARTS = 8
"""Parts of a block that are searched in turn for one entry."""
ALL = 1 << 62
"""As ``last``: keep every entry at the threshold."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type of the bits of a float, by its size in bytes."""

Keys = NDArray[np.integer]
Vectors = Callable[[Slot], Sequence[Tensor]]
Wanted = tuple[int, int]  # row, count


@dataclass(frozen=True)
class Cut:
    """Where to cut to keep exactly so many of the largest magnitudes.

    Keeps entries above ``threshold``, and those at it up to flat position ``last``: of equal
    magnitudes the first in memory win. ``last`` is -1 for none of them, `ALL` for all.
    """

    threshold: float
    last: int


@dataclass(frozen=True)
class _Block:
    """Counts of one block for one bracket (low, high), and the keys inside it."""

    above: int
    at_high: int
    inside: Keys | Tensor
    """On the CPU an array, which numpy ranks faster; elsewhere a tensor there."""
    at_low: int


def cuts(
    weights: Sequence[Weight], vectors: Vectors, counts: Sequence[Sequence[int]]
) -> list[list[Cut]]:
    """Find, for each row of ``vectors``, the cut that keeps each count of largest magnitudes.

    ``weights``: whole, taken as one long vector per row; ``vectors(slot)``: rows of
    [*slot.shape] (task vectors, usually); ``counts``: per row, how many entries to keep.
    """
    search = _Search(weights, vectors)
    total = search.total
    found = {
        (row, count): Cut(math.inf, -1) if count <= 0 else Cut(0.0, ALL)
        for row, wanted in enumerate(counts)
        for count in wanted
        if count <= 0 or count >= total
    }
    search.find([(r, c) for r, wanted in enumerate(counts) for c in wanted if 0 < c < total], found)
    return [[found[row, count] for count in wanted] for row, wanted in enumerate(counts)]


def as_measured(found: Sequence[Sequence[Cut]]) -> dict[str, Tensor]:
    """Convert cuts to tensors ``threshold`` (float64) and ``last`` (int64), both [rows, counts]."""
    thresholds = [[cut.threshold for cut in row] for row in found]
    return {
        "threshold": torch.tensor(thresholds, dtype=torch.float64),
        "last": torch.tensor([[cut.last for cut in row] for row in found]),
    }


def order_statistics(
    weight: Weight, vector: Callable[[Slot], Tensor], ranks: Sequence[int]
) -> Tensor:
    """Find the values at some ranks, 0 for the smallest, of one signed vector: [len(ranks)].

    ``vector(block)``: [*shape]; the result has its dtype.
    """
    n = math.prod(weight.shape)
    if len(weight.blocks()) == 1:  # also where a rank is the first or the last of very few
        (ordered,) = weight.map_blocks(lambda block: vector(block).reshape(-1).sort().values)
        return ordered[list(ranks)]

    def sides(block: Slot) -> Sequence[Tensor]:
        values = vector(block)
        return values.clamp(min=0), values.neg().clamp_(min=0)

    counts = [[n - rank for rank in ranks], [rank + 1 for rank in ranks]]
    positive, negative = cuts([weight], sides, counts)
    values = [
        above.threshold - below.threshold for above, below in zip(positive, negative, strict=True)
    ]
    return torch.tensor(values, dtype=vector(weight.sample(n)).dtype)


@dataclass(frozen=True)
class _Search:
    """Search rows of magnitudes over all blocks of all weights."""

    weights: Sequence[Weight]
    vectors: Vectors

    @property
    def total(self) -> int:
        """Length of a row."""
        return sum(math.prod(weight.shape) for weight in self.weights)

    def find(self, wanted: Sequence[Wanted], found: dict[Wanted, Cut]) -> None:
        """Add the cut of every (row, count); one pass over the blocks unless a bracket misses."""
        samples = self.samples() if wanted else []
        margin = 0.0
        while wanted:
            margin = 4 * margin or 4 / math.sqrt(len(samples[0]))
            brackets = [
                (row, *_bracket(samples[row], count / self.total, margin)) for row, count in wanted
            ]
            look = functools.partial(self.survey, brackets)
            surveys = [blocks for weight in self.weights for blocks in weight.map_blocks(look)]
            missed = []
            for i, (row, count) in enumerate(wanted):
                cut = self.resolve(brackets[i], [blocks[i] for blocks in surveys], count)
                if cut is None:
                    missed.append((row, count))
                else:
                    found[row, count] = cut
            wanted = missed

    def survey(self, brackets: Sequence[tuple[int, int, int]], block: Slot) -> list[_Block]:
        """Count one block for every bracket."""
        vectors = self.vectors(block)
        if _elsewhere(vectors[0]):
            keys = [_keys_there(vector) for vector in vectors]
            return [_surveyed_there(keys[row], low, high) for row, low, high in brackets]
        here = [_keys(vector) for vector in vectors]
        return [_surveyed(here[row], low, high) for row, low, high in brackets]

    def resolve(
        self, bracket: tuple[int, int, int], blocks: Sequence[_Block], count: int
    ) -> Cut | None:
        """Find the threshold in the bracket, and which of the entries equal to it are kept."""
        row, low, high = bracket
        wanted = count - sum(block.above for block in blocks)
        inside = _joined([block.inside for block in blocks])
        at_high, at_low = (sum(b.at_high for b in blocks), sum(b.at_low for b in blocks))
        if not 0 < wanted <= at_high + len(inside) + at_low:
            return None
        if wanted <= at_high:
            key, ties = high, [block.at_high for block in blocks]
        elif wanted <= at_high + len(inside):
            nth = len(inside) - (wanted - at_high)
            key = _smallest(inside, nth)
            wanted -= at_high + _count(inside > key)
            ties = [_count(block.inside == key) for block in blocks]
        else:
            key, ties = low, [block.at_low for block in blocks]
            wanted -= at_high + len(inside)
        last = ALL if wanted == sum(ties) else self.position(row, key, ties, wanted)
        return Cut(_magnitude(key, self.dtype), last)

    def position(self, row: int, key: int, ties: Sequence[int], nth: int) -> int:
        """Flat position of the nth entry equal to ``key``; ``ties``: how many each block holds."""
        at = int(np.searchsorted(np.cumsum(ties), nth))
        nth -= sum(ties[:at])
        start = 0
        for weight in self.weights:
            regions = weight.blocks()
            if at < len(regions):
                look = functools.partial(self.position_in, row=row, key=key, nth=nth)
                return start + weight.map_blocks(look, [regions[at]])[0]
            at, start = at - len(regions), start + math.prod(weight.shape)
        raise AssertionError("a block beyond the last one")

    def position_in(self, block: Slot, *, row: int, key: int, nth: int) -> int:
        """Flat position, in its weight, of the nth entry of a block equal to ``key``."""
        weight = block.weight()
        for region in block.box.blocks(-(-block.box.numel // PARTS)):
            equal = np.flatnonzero(_keys(self.vectors(weight.part(region))[row]) == key)
            if nth <= len(equal):
                return region.position(int(equal[nth - 1]))
            nth -= len(equal)
        raise AssertionError("an entry beyond the last one")

    def samples(self) -> list[Keys]:
        """Keys of a strided sample of each row, sorted downwards."""
        size = min(max(SAMPLE, self.total // 64), LARGEST_SAMPLE)
        if len(self.weights) > 1:
            size = 16 * SAMPLE  # one long row: narrower brackets
        step = max(1, self.total // size)

        rows = zip(*(self.vectors(weight.sample(step)) for weight in self.weights), strict=True)
        return [-np.sort(-np.concatenate([_keys(vector) for vector in row])) for row in rows]

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows; one for all weights."""
        dtypes = {
            vector.dtype
            for weight in self.weights
            for vector in self.vectors(weight.sample(1 << 62))
        }
        assert len(dtypes) == 1, f"rows of different dtypes cannot be ranked together: {dtypes}"
        return dtypes.pop()


def _keys(vector: Tensor) -> Keys:
    """Bits of |x| as integers that sort like |x|, in main memory."""
    bits: Keys = vector.reshape(-1).view(INTEGERS[vector.dtype.itemsize]).cpu().numpy()
    return np.bitwise_and(bits, np.iinfo(bits.dtype).max)


def _magnitude(key: int, dtype: torch.dtype) -> float:
    """The |x| of a key."""
    return float(torch.tensor(key, dtype=INTEGERS[dtype.itemsize]).view(dtype))


def _surveyed(keys: Keys, low: int, high: int) -> _Block:
    at_low, at_high = (int(np.count_nonzero(keys == bound)) for bound in (low, high))
    inside = keys[(keys > low) & (keys < high)]
    return _Block(int(np.count_nonzero(keys > high)), at_high, inside, at_low)


def _elsewhere(vector: Tensor) -> bool:
    return vector.device.type != "cpu"


def _keys_there(vector: Tensor) -> Tensor:
    """Bits of |x| as integers that sort like |x|, on the device of x."""
    bits = vector.reshape(-1).view(INTEGERS[vector.dtype.itemsize])
    return bits.bitwise_and(torch.iinfo(bits.dtype).max)


def _surveyed_there(keys: Tensor, low: int, high: int) -> _Block:
    """Count one block on its device; the few keys inside the bracket stay there."""
    above, below = keys > high, keys > low
    counts = torch.stack([above.sum(), (keys == high).sum(), (keys == low).sum()]).tolist()
    return _Block(counts[0], counts[1], keys[below & (keys < high)], counts[2])


def _joined(keys: Sequence[Any]) -> Any:
    return torch.cat([*keys]) if isinstance(keys[0], Tensor) else np.concatenate(keys)


def _smallest(keys: Any, nth: int) -> int:
    """Find the key at a rank, 0 for the smallest."""
    return int(
        keys.sort().values[nth] if isinstance(keys, Tensor) else np.partition(keys, nth)[nth]
    )


def _count(mask: Any) -> int:
    return int(mask.sum() if isinstance(mask, Tensor) else np.count_nonzero(mask))


def _bracket(sample: Keys, share: float, margin: float) -> tuple[int, int]:
    """Keys around rank ``share`` (0: largest, 1: smallest) of a sample sorted downwards."""
    n = len(sample)
    first, last = math.floor((share - margin) * n), math.ceil((share + margin) * n)
    high = int(sample[first]) if first >= 0 else int(np.iinfo(sample.dtype).max)
    return int(sample[last]) if last < n else -1, high


def by_rank(x: Tensor, values: Tensor) -> Tensor:
    """Assign each entry the value at its rank in its row: ``values[0]`` for the largest |x|.

    x: any float [*shape, n], ranked as float32 at most; values: [n]; the result has x's shape and
    the dtype of ``values``. Of equal magnitudes the first in memory counts as the largest, as it
    does in `merge_plugins.ops.selection`.
    """
    ranked = x.contiguous() if x.dtype.itemsize < 8 else x.float()
    bits = ranked.view(INTEGERS[ranked.dtype.itemsize])
    size = max(1, (x.shape[-1] - 1).bit_length())
    pairs = torch.int32 if bits.dtype.itemsize == 2 and size <= 16 else torch.int64
    downwards = bits.bitwise_not().bitwise_and_(torch.iinfo(bits.dtype).max).to(pairs)
    positions = torch.arange(x.shape[-1], dtype=pairs, device=x.device)
    downwards.bitwise_left_shift_(size).bitwise_or_(positions)
    if downwards.device.type == "cpu":
        downwards.numpy().sort(axis=-1)  # a third of the time of torch's
    else:
        downwards = downwards.sort(dim=-1).values
    order = downwards.bitwise_and_((1 << size) - 1).to(torch.int64)
    return torch.empty_like(x, dtype=values.dtype).scatter_(-1, order, values.expand(x.shape))
