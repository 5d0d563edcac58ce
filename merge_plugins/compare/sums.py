"""Sum up what a comparison needs of one weight, read in blocks; sums of weights add up.

With a base, the task vectors of the models are compared; without, the weights themselves, and
*changes* are the differences of each two models.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from merge_plugins.api import Slot, Weight
from merge_plugins.compare.spectrum import captured
from merge_plugins.ops.arithmetic import added, dot_products, keep_largest
from merge_plugins.ops.selection import as_measured, cuts

DENSITY = 0.2
"""Share of each vector's entries that are its largest: TIES' own choice."""
COUNTED = 1 << 17
"""Elements counted at a time: there are some five temporaries for each vector."""
Pair = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """What is compared of M + 1 models: the first is the base, or one among equals."""

    n_models: int
    """Models, the base included."""
    has_base: bool

    @property
    def compared(self) -> range:
        """The models whose vectors are compared in pairs."""
        return range(int(self.has_base), self.n_models)

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that are compared."""
        return [*itertools.combinations(self.compared, 2)]

    @property
    def changes(self) -> list[Pair]:
        """The differences that are measured: from the base to each model, or of each two models."""
        return [(0, i) for i in self.compared] if self.has_base else self.pairs

    def vectors(self, slot: Slot) -> list[Tensor]:
        """Return what is compared: float32, a tensor [*shape] for each of `compared`."""
        if self.has_base:
            return [*slot.deltas()]
        return [each.float() for each in (slot.base, *slot.experts)]


@dataclass(frozen=True)
class Sums:
    """Sums over some weights: tensors of float64, which hold counts exactly."""

    n: Tensor
    """Entries of each vector: []."""
    gram: Tensor
    """Dot products of the first model and of the others' differences from it: [models, models]."""
    agreement: Tensor
    """Entries where the signs of two vectors agree, less those where they differ: [V, V]."""
    changed: Tensor
    """Entries that are not 0 in either of two vectors: [V, V]."""
    largest: Tensor
    """Entries among the largest of both vectors: [V, V]; of each, on the diagonal."""
    dropped: Tensor
    """Largest entries whose sign TIES would not elect: []."""
    captured: Tensor
    """Squares of each change's first singular values: [changes]."""
    decomposed: Tensor
    """Squares of all of them, of the same weights: [changes]."""

    def __add__(self, other: Sums) -> Sums:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Sums(*(own + theirs for own, theirs in pairs))


def total(sums: Sequence[Sums]) -> Sums:
    """Add sums up."""
    return functools.reduce(Sums.__add__, sums)


def summed(weight: Weight, kind: Kind, directions: int) -> Sums | None:
    """Read a weight and sum it up; None if it holds NaN or infinity.

    ``directions``: how many singular directions are looked for, 0 for none.
    """
    gram = dot_products(weight, lambda slot: [slot.base.float(), *slot.deltas()])
    if not gram.isfinite().all():
        return None
    n = math.prod(weight.shape)
    rows = [[int(DENSITY * n)]] * len(kind.compared)
    cut = as_measured(cuts([weight], kind.vectors, rows))
    count = functools.partial(_counted, kind, cut["threshold"], cut["last"])
    regions = list(weight.region.blocks(min(weight.place.block, COUNTED)))
    agreement, changed, largest, dropped = torch.stack(weight.map_blocks(count, regions)).sum(0)
    found = captured(weight, kind.changes, directions)
    everything = distances(gram, kind.changes)
    energies = (torch.zeros_like(everything),) * 2 if found is None else (found, everything)
    n_entries = torch.tensor(float(n), dtype=torch.float64)
    return Sums(n_entries, gram, agreement, changed, largest, dropped[0, 0], *energies)


def _counted(kind: Kind, threshold: Tensor, last: Tensor, slot: Slot) -> Tensor:
    """Count in one block: `Sums`' agreement, changed, largest and dropped, float64 [4, V, V].

    Products of rows of -1, 0 and 1 are counts, exact in float32 for as many as a block has.
    """
    vectors = kind.vectors(slot)
    kept = [
        keep_largest(vector, slot, limit, end).reshape(-1)
        for vector, limit, end in zip(vectors, threshold[:, 0], last[:, 0], strict=True)
    ]
    elected = torch.where(added(kept) < 0, -1.0, 1.0)  # in a tie plus, as in TIES
    signs = torch.stack([vector.reshape(-1) for vector in vectors]).sign_()
    chosen = torch.stack(kept).sign_()
    largest = chosen.abs()
    nonzero = signs.abs()
    against = (largest.sum() - (chosen @ elected).sum()) / 2
    products = [signs @ signs.mT, nonzero @ nonzero.mT, largest @ largest.mT]
    return torch.stack([*products, against.expand_as(products[0])]).double()


def distances(gram: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Compute squared distances of models from `Sums.gram`: float64 [pairs]."""
    inner = gram.clone()
    inner[0], inner[:, 0] = 0, 0  # the first model is at the origin
    found = [inner[i, i] + inner[j, j] - 2 * inner[i, j] for i, j in pairs]
    return torch.stack(found).clamp(min=0)
