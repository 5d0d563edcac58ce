"""Where a weight is merged never shows: the way of another device, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract.cases import Case, every_case, read, same_bits

from merge_plugins.engine import Merge
from merge_plugins.parallel import Place

ROOM = pytest.mark.parametrize("room", [0, 1 << 30], ids=["read in parts", "held"])


@every_case()
@ROOM
def test_the_way_of_another_device_has_the_same_bits(
    case: Case, room: int, lazily: Callable[..., Merge]
) -> None:
    expected, merge = read(lazily(case)), lazily(case)
    cpu = torch.device("cpu")
    merge.places[cpu] = Place(cpu, 1 << 18, by_threads=False, room=room)
    assert same_bits(expected, read(merge))
