"""Every number of a comparison is that of its definition, spelt out in float64 on whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins.api import Slot
from merge_plugins.compare import spectrum
from merge_plugins.compare.numbers import Numbers
from merge_plugins.compare.sums import DENSITY, Kind, summed, total
from merge_plugins.parallel import Place

SMALL = Place(block=300)
"""A few rows a block."""
SHAPES = ((), (1,), (7,), (64,), (5, 9), (40, 50), (50, 40), (3, 20, 17), (2, 2, 5, 6))
DIRECTIONS = 4

shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def models(shape: Sequence[int], n: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """A base and fine-tunes of it; some change nothing in half of the entries."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    found = [base.to(dtype)]
    for i in range(1, n):
        change = 0.1 * i * torch.randn(shape, generator=generator)
        change *= torch.rand(shape, generator=generator) > 0.5 * (i % 2)
        found.append((base + change).to(dtype))
    return found


def measured(weights: Sequence[Tensor], *, has_base: bool) -> Numbers:
    kind = Kind(len(weights), has_base)
    sums = summed(Slot("w", weights[0], (*weights[1:],)).weight(SMALL), kind, DIRECTIONS)
    assert sums is not None
    return Numbers(sums, kind)


class Defined:
    """The same numbers, from whole tensors."""

    def __init__(self, weights: Sequence[Tensor], *, has_base: bool) -> None:
        self.own = [each.float().double() for each in weights]
        self.has_base = has_base

    def change(self, pair: tuple[int, int]) -> Tensor:
        return (self.own[pair[1]].float() - self.own[pair[0]].float()).double()

    def vector(self, i: int) -> Tensor:
        return self.change((0, i)) if self.has_base else self.own[i]

    def norm(self, pair: tuple[int, int]) -> float:
        first, second = (self.own[i].norm() for i in pair)
        size = first if self.has_base else (first + second) / 2
        return float(self.change(pair).norm() / size)

    def energy(self, pair: tuple[int, int]) -> float:
        change = self.change(pair)
        if change.ndim < 2 or min(change.shape[-2:]) <= DIRECTIONS:
            return math.nan
        squares = torch.linalg.svdvals(change) ** 2
        return float(squares[..., :DIRECTIONS].sum() / squares.sum())

    def cosine(self, pair: tuple[int, int]) -> float:
        first, second = map(self.vector, pair)
        return float((first * second).sum() / first.norm() / second.norm())

    def signs(self, pair: tuple[int, int]) -> float:
        first, second = map(self.vector, pair)
        both = (first != 0) & (second != 0)
        return float((first.sign() == second.sign())[both].double().mean())

    def largest(self, i: int) -> Tensor:
        vector = self.vector(i).reshape(-1)
        order = vector.abs().argsort(descending=True, stable=True)
        found = torch.zeros_like(vector, dtype=torch.bool)
        found[order[: int(DENSITY * len(vector))]] = True
        return found & (vector != 0)

    def overlap(self, pair: tuple[int, int]) -> float:
        first, second = map(self.largest, pair)
        return float(2 * (first & second).sum() / (first.sum() + second.sum()))

    def dropped(self, n: int) -> float:
        kept = [self.vector(i).reshape(-1) * self.largest(i) for i in range(int(self.has_base), n)]
        elected = torch.where(torch.stack(kept).float().sum(0) < 0, -1, 1)
        against = sum(int((each.sign() == -elected).sum()) for each in kept)
        return against / sum(int((each != 0).sum()) for each in kept)


@settings(max_examples=60)
@given(shapes, st.integers(2, 4), dtypes, st.integers(0, 2**16), st.booleans())
def test_numbers_are_those_of_their_definitions(
    shape: Sequence[int], n: int, dtype: torch.dtype, seed: int, has_base: bool
) -> None:
    weights = models(shape, n, dtype, seed)
    found, defined = measured(weights, has_base=has_base), Defined(weights, has_base=has_base)
    for name, pair, value in found.measures():
        try:
            expected = getattr(defined, name)(pair)
        except ZeroDivisionError:
            expected = math.nan
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True), (name, pair)
    if has_base and found.sums.largest.diagonal().sum():
        assert found.dropped == defined.dropped(n)


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.booleans())
def test_several_weights_are_one_long_vector(seed: int, has_base: bool) -> None:
    first, second = (models(shape, 3, torch.float32, seed) for shape in ((40, 50), (9,)))
    kind = Kind(3, has_base)
    parts = [measured(each, has_base=has_base).sums for each in (first, second)]
    together = Numbers(total(parts), kind)
    joined = [torch.cat([a.reshape(-1), b.reshape(-1)]) for a, b in zip(first, second, strict=True)]
    defined = Defined(joined, has_base=has_base)
    for name in ("norm", "cosine", "signs"):
        pairs = kind.changes if name == "norm" else kind.pairs
        for pair in pairs:
            assert getattr(together, name)(pair) == pytest.approx(getattr(defined, name)(pair))


@settings(max_examples=20)
@given(st.integers(0, 2**16))
def test_a_cosine_seen_from_any_model_is_that_of_the_differences(seed: int) -> None:
    weights = models((40, 50), 4, torch.float32, seed)
    own = [each.double() for each in weights]
    for has_base in (True, False):
        found = measured(weights, has_base=has_base)
        for origin in range(4):
            i, j, *_ = (k for k in range(4) if k != origin)
            first, second = own[i] - own[origin], own[j] - own[origin]
            expected = float((first * second).sum() / first.norm() / second.norm())
            assert found.similarity(i, j, origin) == pytest.approx(expected, abs=1e-6)


def decaying(m: int, n: int, generator: torch.Generator) -> Tensor:
    """A matrix with singular values 1, 1/2, 1/3, ..., as changes have."""
    left, right = (
        torch.linalg.qr(torch.randn(size, min(m, n), generator=generator)).Q for size in (m, n)
    )
    return (left / torch.arange(1, min(m, n) + 1)) @ right.mT


def noise(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(m, n, generator=generator)


def adapter(m: int, n: int, generator: torch.Generator) -> Tensor:
    return noise(m, 8, generator) @ noise(8, n, generator)


@pytest.mark.parametrize(("make", "least"), [(noise, 0.83), (decaying, 0.999), (adapter, 1 - 1e-6)])
@pytest.mark.parametrize("shape", [(300, 700), (700, 300)])
def test_of_large_matrices_nearly_all_of_the_first_directions_is_found(
    make: Callable[..., Tensor], least: float, shape: tuple[int, int]
) -> None:
    assert min(shape) > spectrum.EXACT
    change = make(*shape, torch.Generator().manual_seed(0)).double()
    slot = Slot("w", torch.zeros(shape, dtype=torch.float64), (change,))
    found = spectrum.captured(slot.weight(), [(0, 1)], 16)
    assert found is not None
    true = float((torch.linalg.svdvals(change)[:16] ** 2).sum())
    assert least * true <= float(found) <= true * (1 + 1e-6)
