"""Memory of merged weights: in huge pages where the system has them, and no larger than it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from merge_plugins.memory import HUGE, new_memory

CPU = torch.device("cpu")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("n_bytes", [0, 6, HUGE - 2, HUGE, 3 * HUGE + 4098])
def test_any_size_can_be_written(n_bytes: int) -> None:
    memory = new_memory((n_bytes // 2, 1), torch.bfloat16, CPU)
    assert memory.shape == (n_bytes // 2, 1)
    assert memory.is_contiguous()
    assert memory.untyped_storage().nbytes() == n_bytes
    assert (memory.fill_(3.0) == 3).all()


@pytest.mark.skipif(not SETTING.exists(), reason="a system without huge pages")
def test_whole_huge_pages_are_asked_for_and_the_rest_is_small() -> None:
    memory = new_memory((HUGE + HUGE // 4,), torch.bfloat16, CPU)
    first = memory.data_ptr()
    assert "hg" in flags_at(first)
    assert "hg" in flags_at(first + 2 * HUGE - 1)
    assert "hg" not in flags_at(first + 2 * HUGE)  # half a huge page


def flags_at(address: int) -> list[str]:
    """Flags of the mapping at an address, as the kernel lists them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(bound, 16) for bound in mapping.groups())
            inside = first <= address < last
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("the address is not mapped")
