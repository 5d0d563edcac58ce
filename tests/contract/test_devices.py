"""Where a weight is merged never shows: the way of another device, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from contract.cases import Case, every_case, read, same_bits

from merge_plugins.engine import Merge
from merge_plugins.parallel import Place


@every_case()
def test_the_way_of_another_device_has_the_same_bits(
    case: Case, lazily: Callable[..., Merge]
) -> None:
    """Whether a weight is held there, or read in parts."""
    expected, merge, cpu = read(lazily(case)), lazily(case), torch.device("cpu")
    for room in (0, 1 << 30):
        merge.places[cpu] = Place(cpu, 1 << 18, by_threads=False, room=room)
        assert same_bits(expected, read(merge)), room
