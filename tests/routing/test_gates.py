"""Routers, and the decompositions they weigh."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins.errors import DataError
from merge_plugins.ops.svd import truncated_svd
from merge_plugins.routing.gates import Centroid, Fixed, Mlp, Oracle, strongest


@dataclass
class Asked:
    """Requests with features of their own."""

    features: Tensor
    task: str = ""

    def __len__(self) -> int:
        return len(self.features)


def clouds(n: int = 40, width: int = 24) -> list[Tensor]:
    """Three clouds of points around different centres."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 1, width, generator=random)
    return list(centres + 0.5 * torch.randn(3, n, width, generator=random))


@given(weights=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), top_k=st.integers(1, 7))
def test_the_strongest_keep_their_order_and_the_sum(weights: list[float], top_k: int) -> None:
    row = torch.tensor([weights])
    kept = strongest(row, top_k)
    assert int((kept > 0).sum()) <= top_k
    assert torch.allclose(kept.sum(), row.sum(), rtol=1e-5)
    assert not kept[row < row.topk(min(top_k, len(weights))).values[0, -1]].any()


def test_fixed_weights_are_the_same_for_all() -> None:
    router = Fixed((0.5, 0.3, 0.2), top_k=2).learn(lambda _: torch.empty(0), 0)
    expected = torch.tensor([[0.625, 0.375, 0.0]] * 4)
    assert torch.allclose(router(Asked(torch.empty(4, 1))), expected)


def test_an_oracle_knows_patterns_of_tasks() -> None:
    router = Oracle(("gsm8k*", "mmlu_law | mmlu_art")).learn(lambda _: torch.empty(0), 0)
    assert router(Asked(torch.empty(2, 1), "mmlu_art")).tolist() == [[0, 1], [0, 1]]
    assert router(Asked(torch.empty(1, 1), "gsm8k_cot")).tolist() == [[1, 0]]


def test_the_nearest_centroid_has_the_posterior_of_equal_gaussians() -> None:
    lots = clouds()
    router = Centroid(3).learn(lambda expert: lots[expert], 0)
    asked = torch.cat(lots)[::7]
    centres = torch.stack([lot.double().mean(0) for lot in lots])
    inside = torch.cat([lot.double() - c for lot, c in zip(lots, centres, strict=True)])
    density = [
        torch.exp(-(asked.double() - c).square().sum(1) / (2 * inside.square().mean()))
        for c in centres
    ]
    expected = torch.stack(density, 1) / sum(density)[:, None]  # type: ignore[index]
    assert torch.allclose(router(Asked(asked)).double(), expected, atol=1e-5)


def test_the_centroid_of_one_example_each_is_the_nearest() -> None:
    lots = [lot[:1] for lot in clouds()]
    weights = Centroid(3).learn(lambda expert: lots[expert], 0)(Asked(torch.cat(lots) + 0.1))
    assert weights.tolist() == torch.eye(3).tolist()


def test_an_mlp_learns_the_clouds_the_same_way_each_time() -> None:
    lots, before = clouds(), torch.get_rng_state()
    asked = Asked(torch.cat(lots))
    first, again, other = (Mlp(3).learn(lambda e: lots[e], seed)(asked) for seed in (0, 0, 1))
    truth = torch.arange(3).repeat_interleave(40)
    assert float((first.argmax(1) == truth).float().mean()) > 0.95
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_mlp_needs_examples_to_hold_back() -> None:
    with pytest.raises(DataError, match="expert 2 has 1; add data, or write router: centroid"):
        Mlp(2).learn(lambda expert: torch.zeros(2 - expert, 4), 0)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_small_matrices_are_decomposed_exactly(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = truncated_svd(matrix, 5, torch.Generator())
    u, s, vt = torch.linalg.svd(matrix.double())
    expected = (u[:, :5] * s[:5]) @ vt[:5]
    assert torch.allclose(found.dense().double(), expected, atol=1e-5)
    assert torch.allclose(found.up.norm(dim=0), found.down.norm(dim=1))  # sqrt(S) on either side


@pytest.mark.parametrize("shape", [(600, 400), (300, 900)])
def test_large_matrices_lose_hardly_more_than_they_must(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))  # the hardest there is
    found = truncated_svd(matrix, 30, torch.Generator().manual_seed(1))
    again = truncated_svd(matrix, 30, torch.Generator().manual_seed(1))
    least = torch.linalg.svdvals(matrix)[30:].norm()
    assert float((matrix - found.dense()).norm()) < 1.01 * float(least)
    assert torch.equal(found.up, again.up)


def test_no_rank_leaves_nothing() -> None:
    found = truncated_svd(torch.ones(4, 3), 0, torch.Generator())
    assert torch.equal(found.dense(), torch.zeros(4, 3))
