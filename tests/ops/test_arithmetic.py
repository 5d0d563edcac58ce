"""Random masks that depend on nothing but the seed and the place; sums, signs and dot products."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Slot
from merge_plugins.api import Region
from merge_plugins.ops.arithmetic import (
    combine,
    dot_products,
    elected,
    rounded,
    task_vectors,
    weighted_sum,
)
from merge_plugins.ops.random import drop_at_random

N = 1 << 18
NAME = "model.layers.0.mlp.up_proj.weight"


def kept(
    region: Region, density: float = 0.5, *, name: str = NAME, expert: int = 0, seed: int = 0
) -> Tensor:
    """Return the mask of one expert in a region of a weight: 1 kept, 0 dropped."""
    ones = torch.ones(region.sizes)
    slot = Slot(name, None, (ones,) * (expert + 1), seed=seed, region=region)
    return drop_at_random(ones.clone(), slot, expert, density)


def mask(density: float = 0.5, n: int = N, **which: object) -> Tensor:
    return kept(Region.whole((n,)), density, **which)  # type: ignore[arg-type]


def sigmas(found: float, share: float, n: int) -> float:
    """How many standard deviations a count is from its binomial expectation."""
    return abs(found - n * share) / math.sqrt(n * share * (1 - share))


@pytest.mark.parametrize("density", [0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_as_many_entries_are_kept_as_a_fair_coin_would_keep(density: float, seed: int) -> None:
    assert sigmas(float(mask(density, seed=seed).sum()), density, N) < 4


@pytest.mark.parametrize("n_blocks", [16, 256, 4096])
def test_every_stretch_of_a_weight_keeps_its_share(n_blocks: int) -> None:
    counts = mask(0.3).view(n_blocks, -1).sum(1)
    length = N // n_blocks
    chi_square = float(((counts - 0.3 * length) ** 2 / (length * 0.3 * 0.7)).sum())
    assert abs(chi_square - n_blocks) < 5 * math.sqrt(2 * n_blocks)


FIRST = mask()
MASKS = {
    "the first": FIRST,
    "another expert": mask(expert=1),
    "the one after": mask(expert=2),
    "another seed": mask(seed=1),
    "a far seed": mask(seed=2**31),
    "the next layer": mask(name=NAME.replace("0", "1")),
    "another weight": mask(name="lm_head.weight"),
}


def test_masks_of_different_experts_names_and_seeds_are_independent() -> None:
    for (one, first), (other, second) in itertools.combinations(MASKS.items(), 2):
        assert sigmas(float((first == second).sum()), 0.5, N) < 4, (one, other)


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 16, 64, 128, 1024, 4095, 4096, 65536, N // 2])
def test_neighbours_in_a_row_or_column_are_independent(lag: int) -> None:
    agreeing = float((FIRST[lag:] == FIRST[:-lag]).sum())
    assert sigmas(agreeing, 0.5, N - lag) < 4


def test_every_run_of_eight_outcomes_is_equally_likely() -> None:
    eights = (FIRST.view(-1, 8) * 2 ** torch.arange(8)).sum(1).long()
    counts, expected = eights.bincount(minlength=256), N / 8 / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


def test_a_higher_density_keeps_what_a_lower_one_keeps() -> None:
    low, high = mask(0.3), mask(0.7)
    assert torch.equal(low * high, low)


@pytest.mark.parametrize(
    ("density", "n_kept"), [(1.0, N), (1 - 1e-12, N), (1e-12, 0), (0.0, 0), (2.0, N)]
)
def test_at_the_ends_all_or_nothing_is_kept(density: float, n_kept: int) -> None:
    assert int(mask(density).sum()) == n_kept


def test_what_is_kept_keeps_its_bits_and_what_is_dropped_is_zero() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    slot = Slot(NAME, None, (x,))
    found = drop_at_random(x.clone(), slot, 0, 0.5)
    assert torch.equal(found, torch.where(mask(n=1000) > 0, x, 0.0))


SHAPES = st.lists(st.integers(1, 9), max_size=4).map(tuple)


@st.composite
def boxes(draw: st.DrawFn) -> Region:
    """Draw a shape and a box inside it."""
    shape = draw(SHAPES)
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return Region(shape, tuple((start, stop) for start, stop in ends))


@given(box=boxes())
def test_a_box_of_a_weight_gets_the_bits_of_the_whole(box: Region) -> None:
    whole = kept(Region.whole(box.shape))
    assert torch.equal(kept(box), box.of(whole))


@given(box=boxes(), numel=st.integers(1, 50))
def test_blocks_of_any_size_get_the_bits_of_the_whole(box: Region, numel: int) -> None:
    whole = kept(Region.whole(box.shape))
    for block in box.blocks(numel):
        assert torch.equal(kept(block), block.of(whole))


@pytest.mark.parametrize("edge", [1 << 31, 1 << 32, 5 << 32])
def test_weights_of_billions_of_entries_have_one_mask_too(edge: int) -> None:
    def stretch(start: int, stop: int) -> Tensor:
        return kept(Region((1 << 40,), ((start, stop),)))

    across = stretch(edge - 1000, edge + 1000)
    assert torch.equal(across, torch.cat([stretch(edge - 1000, edge), stretch(edge, edge + 1000)]))
    matrix = Region((1 << 20, 1 << 20), ((edge >> 20, (edge >> 20) + 2), (5, 500)))
    assert torch.equal(kept(matrix)[1], stretch(edge + (1 << 20) + 5, edge + (1 << 20) + 500))
    far, near = stretch(edge, edge + N), stretch(0, N)
    assert sigmas(float(far.sum()), 0.5, N) < 4
    assert sigmas(float((far == near).sum()), 0.5, N) < 4


def test_large_and_small_regions_are_hashed_alike() -> None:
    n = 1 << 20  # beyond one block: the other way of counting
    whole = kept(Region.whole((n,)))
    assert torch.equal(torch.cat([kept(b) for b in Region.whole((n,)).blocks(1 << 15)]), whole)


def test_rounding_is_to_the_given_dtype_and_back() -> None:
    x = torch.tensor([1.0, 1.001, 257.0])
    assert rounded(x, torch.bfloat16).tolist() == [1.0, 1.0, 256.0]
    assert rounded(x, torch.float32) is x


@settings(max_examples=30)
@given(weights=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5))
def test_a_weighted_sum_is_one(weights: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(7, 3, generator=generator).bfloat16() for _ in weights]
    exact = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    assert torch.allclose(weighted_sum(tensors, weights).double(), exact, atol=1e-5)


def test_election_keeps_the_sign_of_the_sum_and_counts_who_took_part() -> None:
    terms = [torch.tensor([3.0, -3.0, 1.0, 0.0, 1.0]), torch.tensor([-1.0, 1.0, 2.0, 0.0, -1.0])]
    for tie, at_tie, weight in ((1.0, 1.0, 0.5), (-1.0, -1.0, 0.25)):
        total, share = elected([term.clone() for term in terms], (0.5, 0.25), tie)
        assert total.tolist() == [3, -3, 3, 0, at_tie]
        assert [*share[:3].tolist(), float(share[4])] == [0.5, 0.5, 0.75, weight]
        assert share[3] != 0  # where no term takes part the sum can still be divided
    total, share = elected([term.clone() for term in terms], (0.5, 0.25), 0.0)
    assert total.tolist() == [3, -3, 3, 0, 0]
    assert bool((share != 0).all())


@settings(max_examples=100)
@given(
    n=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    weights=st.none() | st.tuples(*[st.sampled_from([-1.0, -0.25, 0.3, 0.5, 1.0, 3.0])] * 2),
    tie=st.sampled_from([-1.0, 0.0, 1.0]),
    scales=st.tuples(*[st.floats(2**-24, 100)] * 2),
)
def test_one_or_two_terms_of_16_bits_are_elected_as_in_float32(
    n: int,
    dtype: torch.dtype,
    weights: tuple[float, ...] | None,
    tie: float,
    scales: tuple[float, float],
) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4096, generator=generator)
    noise[:, :99] = 0
    noise[:, 99:200] *= -0.0  # zeros of both signs
    noise[1, 200:400] = -noise[0, 200:400] * scales[0] / scales[1]  # ties, if not rounded away
    terms = [(row * scale).to(dtype) for row, scale in zip(noise, scales, strict=True)][:n]
    if weights is not None:
        weights = tuple(torch.tensor(weights, dtype=dtype).tolist()[:n])
    wide = elected([term.float() for term in terms], weights, tie)
    for found, exact in zip(elected(terms, weights, tie), wide, strict=True):
        assert torch.equal(found.to(dtype).view(torch.int16), exact.to(dtype).view(torch.int16))


@pytest.mark.parametrize("elect", [False, True])
def test_models_stored_in_different_dtypes_are_combined(elect: bool) -> None:
    base, first, second = torch.tensor([[1.0, 2, 3], [1.5, 3, 2], [2, 1, 2]])
    slot = Slot("w", base.bfloat16(), (first.bfloat16(), second))
    merged = combine(slot, task_vectors(slot), (1, 1), scale=1, normalize=False, elect=elect)
    assert merged.tolist() == ([2.5, 3, 1] if elect else [2.5, 2, 1])


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("elect", [False, True])
def test_sums_of_float64_are_float64(n: int, elect: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *experts = torch.rand(n + 1, 99, generator=generator, dtype=torch.float64)
    experts = [base + expert for expert in experts]  # all of one sign: nothing is voted down
    slot = Slot("w", base, tuple(experts))
    merged = combine(slot, task_vectors(slot), (0.7,) * n, scale=1, normalize=False, elect=elect)
    exact = base + 0.7 * sum(expert - base for expert in experts)
    assert float((merged - exact).abs().max()) < 1e-14
    averaged = weighted_sum(experts, (1 / n,) * n)
    assert float((averaged - torch.stack(experts).mean(0)).abs().max()) < 1e-14


def test_weights_that_cancel_can_still_be_divided_by() -> None:
    terms = [torch.tensor([2.0]), torch.tensor([1.0])]
    total, share = elected(terms, (1.0, -1.0), 1.0)
    assert (total.tolist(), share.tolist()) == ([3], [1])


def test_task_vectors_leave_the_models_alone() -> None:
    base, expert = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0])
    (delta,) = task_vectors(Slot("w", base, (expert,)))
    assert delta.tolist() == [0.5, -2.0]
    assert (base.tolist(), expert.tolist()) == ([1, 2], [1.5, 0])


def test_dot_products_are_those_of_the_whole_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 300_001, generator=generator)  # several blocks
    dots = dot_products(Slot("w", None, tuple(rows)).weight(), lambda slot: slot.experts)
    assert torch.allclose(dots, rows.double() @ rows.double().T, rtol=1e-5, atol=1e-2)
    assert torch.equal(dots, dots.T)
