"""Memory of merged weights, in huge pages where there are any, and of small results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merge_plugins.memory import HUGE, SMALL, new_memory, set_aside, taken_back

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


@given(
    shape=st.lists(st.integers(0, 9), max_size=3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    seed=st.integers(0, 99),
)
def test_a_small_tensor_set_aside_comes_back_as_it_was(
    shape: list[int], dtype: torch.dtype, seed: int
) -> None:
    one = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(9).to(dtype)
    for tensor in (one, one.mT if one.ndim > 1 else one):
        found = taken_back(set_aside(tensor))
        assert found.dtype == dtype
        assert torch.equal(found, tensor)


def test_anything_else_is_left_where_it_is() -> None:
    large = torch.zeros(SMALL // 4 + 1)
    learnt = torch.zeros(2, requires_grad=True)
    others = (
        torch.empty(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.zeros(2).cfloat().conj(),
    )
    for result in (None, 3, "text", [torch.zeros(2)], large, learnt, *others):
        assert taken_back(set_aside(result)) is result
