"""Edges of the methods that take some entries and leave others: SCE, RAM, NearSwap, fusion."""

from __future__ import annotations

from typing import Any

import mergekit_formulas as mergekit
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Slot
from merge_plugins.errors import ParameterError
from merge_plugins.methods.nearswap_arcee import ArceeFusion, NearSwap
from merge_plugins.methods.ram import Ram, RamPlus
from merge_plugins.methods.sce import Sce
from merge_plugins.parallel import Place
from merge_plugins.testing import in_memory


def merge(kernel: Any, base: Tensor, *experts: Tensor) -> Tensor:
    """Merge one whole weight in memory, as the runner would."""
    return in_memory.merged(kernel, Slot("w", base, experts))


def drawn(*shape: int, seed: int = 0, n: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_models_merges_as_the_formula_says(n: int) -> None:
    base, *experts = drawn(12, 9, n=n + 1)
    b, x = base.double(), torch.stack(experts).double()
    for topk in (1.0, 0.3):
        merged = merge(Sce(select_topk=topk), base, *experts)
        assert torch.allclose(merged.double(), mergekit.sce(b, x, topk), atol=1e-6)
    merged = merge(Ram(epsilon=1.0), base, *experts)
    assert torch.allclose(merged.double(), mergekit.ram(b, x, 1.0), atol=1e-6)
    merged = merge(RamPlus(r=0.5, alpha=3.0, epsilon=1.0), base, *experts)
    assert torch.allclose(merged.double(), mergekit.ram(b, x, 1.0, 0.5, 3.0), atol=1e-6)


def test_sce_of_models_that_do_not_differ_selects_nothing() -> None:
    base, expert = drawn(4, 4)
    assert torch.equal(merge(Sce(select_topk=0.5), base, expert, expert), base)
    assert torch.equal(merge(Sce(select_topk=0.5), base, expert), base)
    assert torch.allclose(merge(Sce(), base, expert, expert), expert, atol=1e-6)


def test_sce_weighs_models_alike_if_none_moved_to_speak_of() -> None:
    base = torch.zeros(2, 2)
    small, smaller = torch.full((2, 2), 4e-4), torch.full((2, 2), 2e-4)
    assert torch.allclose(merge(Sce(), base, small, smaller), torch.full((2, 2), 3e-4))


def test_ram_keeps_a_change_that_only_one_model_made() -> None:
    base = torch.zeros(4)
    first, second = torch.tensor([1.0, 2.0, 0.0, 1e-6]), torch.tensor([0.0, 4.0, 0.0, 3.0])
    assert merge(Ram(), base, first, second).tolist() == [1.0, 3.0, 0.0, 3.0]
    amplified = merge(RamPlus(r=0.5, alpha=9.0), base, first, second)
    assert amplified.tolist() == [1.5, 3.0, 0.0, 4.5]  # one shared change to one unique: 1 + r
    capped = merge(RamPlus(r=0.5, alpha=0.5), base, first, second)
    assert capped.tolist() == [1.25, 3.0, 0.0, 3.75]


def test_nearswap_swaps_what_is_close_and_leaves_what_is_far() -> None:
    base = torch.zeros(4)
    other = torch.tensor([0.1, -0.1, 10.0, 0.0])
    assert torch.allclose(merge(NearSwap(t=0.2), base, other), torch.tensor([0.1, -0.1, 0.2, 0.0]))
    assert torch.equal(merge(NearSwap(t=0.0), base, other), base)


@pytest.mark.parametrize("n", range(1, 12))
def test_arcee_fusion_reads_quartiles_of_the_shortest_weights(n: int) -> None:
    base, other = drawn(n, seed=n)
    merged = merge(ArceeFusion(), base, other)
    expected = mergekit.arcee_fusion(base.double(), other.double())
    assert torch.allclose(merged.double(), expected, atol=1e-6)


@given(seed=st.integers(0, 50), rows=st.integers(1, 30), columns=st.integers(1, 30))
def test_arcee_fusion_ranks_all_blocks_together(seed: int, rows: int, columns: int) -> None:
    base, other = (x.bfloat16() for x in drawn(rows, columns, seed=seed))
    other = base + 0.05 * other  # rounding makes some divergences negative
    whole = merge(ArceeFusion(), base, other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "block_size", lambda *_: 64)
        assert torch.equal(merge(ArceeFusion(), base, other), whole)


def test_equal_models_merge_to_themselves_with_no_row_to_prefer() -> None:
    (base,) = drawn(5, 6, n=1)
    for kernel in (Sce(), Sce(select_topk=0.5), Ram(), RamPlus(), NearSwap(t=0.1), ArceeFusion()):
        assert torch.equal(merge(kernel, base, base.clone()), base), kernel


@pytest.mark.parametrize(
    ("method", "given_", "said"),
    [
        (Sce, {"select_topk": 40.0}, "For 40 % write select_topk: 0.4"),
        (Ram, {"epsilon": -1.0}, "epsilon is 0 or more; got -1"),
        (RamPlus, {"alpha": -0.5}, "alpha is 0 or more; got -0.5"),
        (NearSwap, {"t": -0.5}, "t is a distance between weights, 0 or more; got -0.5"),
    ],
)
def test_parameters_out_of_range_are_refused(
    method: Any, given_: dict[str, float], said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        method(**given_)
