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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge_plugins.api import Slot

SAMPLE = 1 << 16
RUN = 64  # neighbours sampled together: one page read serves them all
ALL = 1 << 62
"""As ``last``: keep every entry at the threshold."""

Keys = NDArray[np.integer]
Vectors = Callable[[Slot], Sequence[Tensor]]


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
    """What one block says about one bracket (low, high)."""

    above: int
    at_high: int
    inside: Keys
    at_low: int


def cuts(
    slots: Sequence[Slot],
    vectors: Vectors,
    counts: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float32,
) -> list[list[Cut]]:
    """Return, for each row of ``vectors``, the cut that keeps each count of largest magnitudes.

    ``slots``: whole weights, taken as one long vector per row; ``vectors(slot)``: rows of float32
    [*slot.shape] (task vectors, usually); ``counts``: per row, how many entries to keep;
    ``dtype``: what the rows' values were rounded to, since 16 bits are compared twice as fast.
    """
    return [
        _Search(slots, vectors, row, dtype).cuts(row_counts)
        for row, row_counts in enumerate(counts)
    ]


def as_measured(found: Sequence[Sequence[Cut]]) -> dict[str, Tensor]:
    """Return cuts as tensors ``threshold`` (float32) and ``last`` (int64), both [rows, counts]."""
    return {
        "threshold": torch.tensor([[cut.threshold for cut in row] for row in found]),
        "last": torch.tensor([[cut.last for cut in row] for row in found]),
    }


@dataclass(frozen=True)
class _Search:
    """One row of magnitudes over all blocks of all slots."""

    slots: Sequence[Slot]
    vectors: Vectors
    row: int
    dtype: torch.dtype

    @property
    def total(self) -> int:
        """Length of the row."""
        return sum(math.prod(slot.shape) for slot in self.slots)

    def keys(self, slot: Slot) -> Keys:
        """Bits of |x| as integers that sort like |x|; 16 bits where those hold every value."""
        vector = self.vectors(slot)[self.row]
        if self.dtype.itemsize == 2:
            bits: Keys = vector.to(self.dtype).view(torch.int16).numpy()
        else:
            bits = vector.float().view(torch.int32).numpy()
        return np.bitwise_and(bits.reshape(-1), np.iinfo(bits.dtype).max)

    def magnitude(self, key: int) -> float:
        """The |x| of a key."""
        if self.dtype.itemsize == 2:
            return float(torch.tensor(key, dtype=torch.int16).view(self.dtype))
        return float(torch.tensor(key, dtype=torch.int32).view(torch.float32))

    def cuts(self, counts: Sequence[int]) -> list[Cut]:
        """One cut for each count of entries to keep."""
        if all(count <= 0 or count >= self.total for count in counts):
            return [Cut(math.inf, -1) if count <= 0 else Cut(0.0, ALL) for count in counts]
        sample = self.sample()
        return [self.cut(count, sample) for count in counts]

    def cut(self, count: int, sample: Keys) -> Cut:
        """The cut that keeps ``count`` entries, given a sample of keys sorted downwards."""
        if count <= 0:
            return Cut(math.inf, -1)
        if count >= self.total:
            return Cut(0.0, ALL)
        margin = 4 / math.sqrt(len(sample))
        while True:
            low, high = _bracket(sample, count / self.total, margin)
            look = functools.partial(self.survey, low, high)
            blocks = [block for slot in self.slots for block in slot.map_blocks(look)]
            wanted = count - sum(block.above for block in blocks)
            if 0 < wanted <= sum(b.at_high + len(b.inside) + b.at_low for b in blocks):
                return self.resolve(blocks, low, high, wanted)
            margin *= 4

    def survey(self, low: int, high: int, block: Slot) -> _Block:
        """Look at one block once."""
        keys = self.keys(block)
        at_low, at_high = (int(np.count_nonzero(keys == bound)) for bound in (low, high))
        inside = keys[(keys > low) & (keys < high)]
        return _Block(int(np.count_nonzero(keys > high)), at_high, inside, at_low)

    def resolve(self, blocks: Sequence[_Block], low: int, high: int, wanted: int) -> Cut:
        """Find the threshold in the bracket, and which of the entries equal to it are kept."""
        inside = np.concatenate([block.inside for block in blocks])
        at_high = sum(block.at_high for block in blocks)
        if wanted <= at_high:
            key, ties = high, [block.at_high for block in blocks]
        elif wanted <= at_high + len(inside):
            nth = len(inside) - (wanted - at_high)
            key = int(np.partition(inside, nth)[nth])
            wanted -= at_high + int(np.count_nonzero(inside > key))
            ties = [int(np.count_nonzero(block.inside == key)) for block in blocks]
        else:
            key, ties = low, [block.at_low for block in blocks]
            wanted -= at_high + len(inside)
        last = ALL if wanted == sum(ties) else self.position(key, ties, wanted)
        return Cut(self.magnitude(key), last)

    def position(self, key: int, ties: Sequence[int], nth: int) -> int:
        """Flat position of the nth entry equal to ``key``; ``ties``: how many each block holds."""
        at = int(np.searchsorted(np.cumsum(ties), nth))
        nth -= sum(ties[:at])
        start = 0
        for slot in self.slots:
            regions = slot.blocks()
            if at < len(regions):
                block = slot.part(regions[at])
                equal = np.flatnonzero(self.keys(block) == key)
                return start + int(block.index().reshape(-1)[int(equal[nth - 1])])
            at, start = at - len(regions), start + math.prod(slot.shape)
        raise AssertionError("a block beyond the last one")

    def sample(self) -> Keys:
        """Keys of a strided sample of the row, sorted downwards."""
        size = SAMPLE if len(self.slots) == 1 else 16 * SAMPLE  # one long row: narrower brackets
        step = max(1, self.total // size)
        return -np.sort(-np.concatenate([self.keys(_thinned(slot, step)) for slot in self.slots]))


def _bracket(sample: Keys, share: float, margin: float) -> tuple[int, int]:
    """Keys around rank ``share`` (0: largest, 1: smallest) of a sample sorted downwards."""
    n = len(sample)
    first, last = math.floor((share - margin) * n), math.ceil((share + margin) * n)
    high = int(sample[first]) if first >= 0 else int(np.iinfo(sample.dtype).max)
    return int(sample[last]) if last < n else -1, high


def _thinned(slot: Slot, step: int) -> Slot:
    """Return a slot of runs of neighbours: one element in ``step`` of the original."""

    def thin(tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1)
        runs = flat.numel() // (step * RUN)
        if step == 1 or runs == 0:
            return flat[::step]
        return flat.as_strided((runs, RUN), (step * RUN, 1), flat.storage_offset()).reshape(-1)

    base = None if slot.maybe_base is None else thin(slot.maybe_base)
    thinned = Slot(slot.name, base, tuple(thin(expert) for expert in slot.experts), seed=slot.seed)
    return slot.through(thinned) if slot.through else thinned
