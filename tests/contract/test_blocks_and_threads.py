"""How a weight is cut, and how many work on it, never shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract.cases import Case, every_case, near, read, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_plugins.engine import Merge
from merge_plugins.parallel import Place


@every_case()
def test_a_weight_of_many_blocks_is_measured_as_a_whole(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *_ = weights(1, (50, 60))
    slot = case.slot(base, *near(base, 3))
    (expected,) = case.merge(slot)
    monkeypatch.setattr(Place, "block_size", lambda *_: 64)
    (merged,) = case.merge(slot)
    assert torch.allclose(merged, expected, rtol=1e-6, atol=1e-6)


@every_case()
def test_block_size_and_thread_count_never_show(
    case: Case, lazily: Callable[..., Merge], with_threads: Callable[[int], None]
) -> None:
    whole = read(lazily(case))
    for block in (1000, 64, 7):
        assert same_bits(whole, read(lazily(case, block=block))), block
    for n_threads in (1, 5):
        with_threads(n_threads)
        assert same_bits(whole, read(lazily(case, block=50))), n_threads


@every_case()
def test_any_region_has_the_bits_of_the_whole(case: Case, lazily: Callable[..., Merge]) -> None:
    merge = lazily(case, block=50)
    tensors, whole = merge.tensors(), read(merge)

    @settings(max_examples=15)
    @given(name=st.sampled_from(sorted(tensors)), data=st.data())
    def holds(name: str, data: st.DataObject) -> None:
        cuts = [
            slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
            for n in tensors[name].shape
        ]
        assert torch.equal(tensors[name][tuple(cuts)], whole[name][tuple(cuts)])

    holds()


@every_case()
def test_what_is_measured_of_a_large_weight_is_the_same_on_any_number_of_threads(
    case: Case, with_threads: Callable[[int], None]
) -> None:
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(300, 1000, generator=generator)  # three blocks
    experts = [base + 0.1 * torch.randn(base.shape, generator=generator) for _ in range(3)]
    slot = case.slot(base.bfloat16(), *(expert.bfloat16() for expert in experts))
    found = []
    for n_threads in (1, 2, 5):
        with_threads(n_threads)
        found.append(case.measured(slot))
    assert all(same_bits(found[0], other) for other in found)
