"""Exactly the k largest magnitudes, whatever the numbers; the first in memory of equal ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Slot
from merge_plugins.api import slot as slot_module
from merge_plugins.ops import selection
from merge_plugins.ops.arithmetic import keep_largest
from merge_plugins.ops.selection import ALL, Cut, as_measured, cuts, order_statistics
from merge_plugins.parallel import Place

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 1e-40, -1e-45, 3e38])
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks and a sparse sample, even of a few hundred numbers."""
    monkeypatch.setattr(Place, "block_size", lambda *_: 37)
    monkeypatch.setattr(selection, "SAMPLE", 64)
    monkeypatch.setattr(slot_module, "RUN", 4)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search as on another device."""
    monkeypatch.setattr(selection, "_elsewhere", lambda vector: True)


def slot_of(*rows: Tensor, name: str = "w") -> Slot:
    return Slot(name, None, rows)


def as_stored(slot: Slot) -> Sequence[Tensor]:
    return slot.experts


def kept_by(cut: Cut, x: Tensor) -> Tensor:
    measured = as_measured([[cut]])
    return keep_largest(x.clone(), slot_of(x), measured["threshold"][0, 0], measured["last"][0, 0])


def largest(x: Tensor, count: int) -> Tensor:
    """Keep the ``count`` largest magnitudes by a stable sort: the definition."""
    order = x.reshape(-1).abs().sort(descending=True, stable=True).indices[: max(0, count)]
    kept = torch.zeros_like(x).reshape(-1)
    kept[order] = x.reshape(-1)[order]
    return kept.view_as(x)


def check(x: Tensor, count: int) -> None:
    ((cut,),) = cuts([slot_of(x).weight()], as_stored, [[count]])
    assert torch.equal(kept_by(cut, x.float()), largest(x.float(), count))


@given(values=st.lists(FEW | ANY, min_size=1, max_size=400), share=st.floats(-0.1, 1.1))
def test_exactly_the_largest_are_kept_and_equal_ones_by_position(
    values: list[float], share: float
) -> None:
    check(torch.tensor(values), int(share * len(values)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("where", ["here", "there"])
def test_exactly_the_largest_are_kept_in_many_blocks_of_a_sparse_sample(
    where: str, request: pytest.FixtureRequest
) -> None:
    if where == "there":
        request.getfixturevalue("there")

    @settings(max_examples=60)
    @given(
        values=st.lists(FEW, min_size=100, max_size=600)
        | st.lists(ANY, min_size=300, max_size=600),
        share=st.floats(0, 1),
    )
    def holds(values: list[float], share: float) -> None:
        check(torch.tensor(values), int(share * len(values)))

    holds()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_numbers_are_full_of_ties_and_still_counted_exactly(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (0.01 * torch.randn(31, 67, generator=generator)).to(dtype)
    for count in (0, 1, 2, 500, 1038, 1039, 2075, 2076, 2077, 5000):
        check(x, count)


def test_float64_is_ranked_by_all_of_its_bits() -> None:
    places = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    x = 1 + places.double() * 1e-15  # all are 1 in float32
    for count in (1, 500, 999):
        ((cut,),) = cuts([slot_of(x).weight()], as_stored, [[count]])
        assert torch.equal(kept_by(cut, x), largest(x, count))


@pytest.mark.parametrize("count", [-3, 0])
def test_keeping_nothing_leaves_zeros_and_no_nan(count: int) -> None:
    x = torch.tensor([1.0, -2.0, 0.0, 3e38])
    ((cut,),) = cuts([slot_of(x).weight()], as_stored, [[count]])
    assert cut == Cut(math.inf, -1)
    assert torch.equal(kept_by(cut, x), torch.zeros(4))


@pytest.mark.parametrize("count", [4, 9])
def test_keeping_everything_changes_nothing(count: int) -> None:
    x = torch.tensor([1.0, -2.0, 0.0, 1e-45])
    ((cut,),) = cuts([slot_of(x).weight()], as_stored, [[count]])
    assert cut == Cut(0.0, ALL)
    assert torch.equal(kept_by(cut, x), x)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("count", [0, 1])
def test_one_element_is_kept_or_not(shape: tuple[int, ...], count: int) -> None:
    check(torch.full(shape, -2.0), count)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_weight_has_nothing_to_cut(shape: tuple[int, ...]) -> None:
    for count in (0, 1):
        check(torch.zeros(shape), count)


def test_zeros_only_are_all_ties() -> None:
    for count in (1, 50, 99):
        ((cut,),) = cuts([slot_of(torch.zeros(100)).weight()], as_stored, [[count]])
        assert cut == Cut(0.0, count - 1)


def test_of_equal_magnitudes_the_first_in_memory_are_kept() -> None:
    x = torch.tensor([[1.0, -2.0, 2.0], [2.0, -2.0, 3.0]])
    ((cut,),) = cuts([slot_of(x).weight()], as_stored, [[3]])
    assert cut == Cut(2.0, 2)
    assert kept_by(cut, x).tolist() == [[0, -2, 2], [0, 0, 3]]


def test_several_counts_and_rows_are_answered_at_once() -> None:
    first, second = torch.arange(10.0), torch.arange(10.0).flip(0) * 2
    found = cuts([slot_of(first, second).weight()], as_stored, [[1, 4], [0, 10]])
    assert [[cut.threshold for cut in row] for row in found] == [[9, 6], [math.inf, 0]]
    measured = as_measured(found)
    assert measured["threshold"].shape == measured["last"].shape == (2, 2)


@pytest.mark.usefixtures("small_blocks")
def test_several_weights_are_ranked_as_one_long_vector() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(13, 17), (), (400,), (0,), (7, 5, 3)]
    weights = [torch.randint(-4, 5, shape, generator=generator).float() for shape in shapes]
    slots = [slot_of(weight, name=f"w{i}").weight() for i, weight in enumerate(weights)]
    joined = torch.cat([weight.reshape(-1) for weight in weights])
    for count in (1, 100, 333, 500, len(joined) - 1):
        ((cut,),) = cuts(slots, as_stored, [[count]])
        assert torch.equal(kept_by(cut, joined), largest(joined, count))


SIZE = 1 << 20


def hidden_from_the_sample(flat: Tensor) -> Tensor:
    """Zero every element a strided sample of runs would look at."""
    step = SIZE // selection.SAMPLE
    return (
        flat.view(-1, step * slot_module.RUN)
        .index_fill(1, torch.arange(slot_module.RUN), 0)
        .view(-1)
    )


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.sort().values,
        lambda x: x.sort(descending=True).values,
        lambda x: torch.cat([x[:-5000], 1e6 * x[-5000:]]),
        lambda x: torch.cat([x[:200], torch.zeros(SIZE - 200)]),
        hidden_from_the_sample,
    ],
    ids=["ascending", "descending", "giant outliers", "nearly all zero", "unseen by the sample"],
)
def test_a_misleading_sample_costs_time_and_never_exactness(arrange: object) -> None:
    x = arrange(torch.randn(SIZE, generator=torch.Generator().manual_seed(2)))  # type: ignore[operator]
    magnitudes = x.abs().sort(descending=True).values
    for count in (1, 150, 5000, SIZE // 5, SIZE // 2, SIZE - 1):
        ((cut,),) = cuts([slot_of(x).weight()], as_stored, [[count]])
        assert cut.threshold == magnitudes[count - 1]
        assert int(kept_by(cut, x + 0.0).count_nonzero()) == int((magnitudes[:count] > 0).sum())


@given(
    x=st.lists(FEW | ANY, min_size=1, max_size=200),
    ranks=st.lists(st.integers(0, 199), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_order_statistics_are_those_of_a_sort(
    x: list[float], ranks: list[int], dtype: torch.dtype
) -> None:
    vector = torch.tensor(x).clamp(-3e38, 3e38).to(dtype)
    ranks = [rank % len(x) for rank in ranks]
    expected = vector.sort().values[ranks]
    found = order_statistics(slot_of(vector).weight(), lambda block: block.experts[0], ranks)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("signs", ["both", "negative", "positive", "few"])
def test_order_statistics_reach_over_blocks_and_over_zero(signs: str) -> None:
    x = torch.randn(700, generator=torch.Generator().manual_seed(0))
    x = {"both": x, "negative": -x.abs(), "positive": x.abs(), "few": (x > 1.5) * x}[signs]
    ranks = [1, 174, 349, 524, 698]
    found = order_statistics(
        slot_of(x.view(20, 35)).weight(), lambda block: block.experts[0], ranks
    )
    assert torch.equal(found, x.sort().values[ranks])


@pytest.mark.usefixtures("small_blocks")
def test_a_sample_knows_its_rows() -> None:
    """What is looked up by row meets a sample of a weight as it meets a box of it."""
    rows = torch.arange(20.0)
    x = rows[:, None] + torch.zeros(20, 35)

    def vector(block: Slot) -> Tensor:
        assert torch.equal(block.of_rows(rows).expand(block.shape), block.experts[0])
        return block.experts[0]

    assert order_statistics(slot_of(x).weight(), vector, [350]).item() == 10.0
