"""What a method is called with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merge_plugins import Slot
from merge_plugins.api import Region
from merge_plugins.testing import weights


def test_a_kernel_may_be_called_on_a_region_of_a_slot() -> None:
    base, *experts = weights(4)
    slot = Slot("w", base, tuple(experts))
    region = Region((13, 29), ((3, 9), (4, 20)))
    weight = slot.weight()
    part = weight.part(region)
    assert torch.equal(part.base, base[3:9, 4:20])
    assert torch.equal(part.index(), torch.arange(13 * 29).view(13, 29)[3:9, 4:20])
    assert part.deltas().shape == (3, 6, 16)
    inner = part.weight().part(Region((13, 29), ((4, 9), (10, 12))))
    assert torch.equal(inner.experts[2], experts[2][4:9, 10:12])
    boxes = part.weight().map_blocks(lambda block: block.base.sum())
    assert torch.stack(boxes).sum() == pytest.approx(float(base[3:9, 4:20].sum()), rel=1e-5)


def test_a_slot_draws_the_same_numbers_for_the_same_expert_and_name() -> None:
    def draws(name: str, expert: int, seed: int) -> list[float]:
        slot = Slot(name, None, (torch.zeros(1),) * 2, seed=seed)
        return torch.rand(4, generator=slot.generator(expert)).tolist()

    assert draws("w", 0, 0) == draws("w", 0, 0)
    different = [draws("w", 0, 0), draws("w", 1, 0), draws("v", 0, 0), draws("w", 0, 1)]
    assert len({tuple(numbers) for numbers in different}) == 4


@st.composite
def boxes(draw: st.DrawFn) -> Region:
    """Boxes of weights with 0 to 3 dimensions, in one piece or not, also empty ones."""
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    starts = [draw(st.integers(0, size - 1)) for size in shape]
    bounds = [
        (start, draw(st.integers(start, size))) for start, size in zip(starts, shape, strict=True)
    ]
    return Region(tuple(shape), tuple(bounds))


@given(box=boxes(), position=st.integers(-3, 130) | st.just(1 << 62))
def test_positions_and_counts_are_those_of_the_index(box: Region, position: int) -> None:
    index = box.index().reshape(-1)
    assert [box.position(nth) for nth in range(box.numel)] == index.tolist()
    assert box.before(position) == int((index < position).sum())
    some = index[::2].contiguous()
    sample = Slot("w", None, (some.double(),), region=Region.whole(box.shape), positions=some)
    assert sample.before(position) == int((some < position).sum())
