"""What a method is called with."""

from __future__ import annotations

import pytest
import torch

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
