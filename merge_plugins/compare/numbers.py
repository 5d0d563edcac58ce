"""Derive from sums what people read: relative norms, cosines, shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from merge_plugins.compare.sums import Kind, Pair, Sums, distances


@dataclass(frozen=True)
class Numbers:
    """Numbers of some weights, taken as one long vector; NaN where they are undefined."""

    sums: Sums
    kind: Kind

    @cached_property
    def _gram(self) -> list[list[float]]:
        found: list[list[float]] = self.sums.gram.tolist()
        return found

    def inner(self, i: int, j: int, origin: int | None = None) -> float:
        """Dot product of two models; ``origin``: as seen from that model."""
        first, gram = self._gram[0], self._gram

        def from_first(a: int, b: int) -> float:
            return gram[a][b] if a and b else 0.0

        if origin is None:
            along = (first[i] if i else 0.0) + (first[j] if j else 0.0)
            return first[0] + along + from_first(i, j)
        seen = ((i, j), (origin, origin)), ((i, origin), (origin, j))
        plus, minus = (sum(from_first(*pair) for pair in pairs) for pairs in seen)
        return plus - minus

    def similarity(self, i: int, j: int, origin: int | None = None) -> float:
        """Cosine of two models' weights; ``origin``: of their differences from that model."""
        product = self.inner(i, i, origin) * self.inner(j, j, origin)
        return self.inner(i, j, origin) / math.sqrt(product) if product > 0 else math.nan

    def together(self, origin: int) -> float:
        """Mean cosine of all other models, each two, as seen from one; NaN if there are not two."""
        others = [i for i in range(self.kind.n_models) if i != origin]
        found = [self.similarity(i, j, origin) for i, j in itertools.combinations(others, 2)]
        found = [each for each in found if not math.isnan(each)]
        return math.fsum(found) / len(found) if found else math.nan

    def norm(self, change: Pair) -> float:
        """Norm of a change relative to the base's, or to the mean of both models'."""
        i, j = change
        size = math.sqrt(self.inner(i, i))
        size = size if self.kind.has_base else (size + math.sqrt(self.inner(j, j))) / 2
        distance = math.sqrt(float(distances(self.sums.gram, [change])))
        return distance / size if size else math.nan

    def energy(self, change: Pair) -> float:
        """Share of a change's energy, its squared norm, in its first singular directions."""
        at = self.kind.changes.index(change)
        return _share(float(self.sums.captured[at]), float(self.sums.decomposed[at]))

    def cosine(self, pair: Pair) -> float:
        """Cosine of two vectors that are compared."""
        return self.similarity(*pair, 0 if self.kind.has_base else None)

    def signs(self, pair: Pair) -> float:
        """Share of the entries not 0 in either of two vectors whose signs agree."""
        i, j = self._places(pair)
        changed = float(self.sums.changed[i, j])
        return _share((changed + float(self.sums.agreement[i, j])) / 2, changed)

    def overlap(self, pair: Pair) -> float:
        """Share of the largest entries of one vector that are among the largest of the other."""
        i, j = self._places(pair)
        both, first, second = (float(self.sums.largest[at]) for at in ((i, j), (i, i), (j, j)))
        return _share(2 * both, first + second)

    @property
    def dropped(self) -> float:
        """Share of all vectors' largest entries that lose TIES' election of signs."""
        return _share(float(self.sums.dropped), float(self.sums.largest.diagonal().sum()))

    def unchanged(self, model: int) -> float:
        """Share of the entries of a vector that are 0."""
        (place, _) = self._places((model, model))
        everything = float(self.sums.n)
        return 1 - _share(float(self.sums.changed[place, place]), everything)

    def _places(self, pair: Pair) -> Pair:
        first = self.kind.compared[0]
        return pair[0] - first, pair[1] - first

    def measures(self) -> Iterator[tuple[str, Pair, float]]:
        """Yield every measure with its models."""
        for change in self.kind.changes:
            yield "norm", change, self.norm(change)
            yield "energy", change, self.energy(change)
        for pair in self.kind.pairs:
            yield "cosine", pair, self.cosine(pair)
            yield "signs", pair, self.signs(pair)
            yield "overlap", pair, self.overlap(pair)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
