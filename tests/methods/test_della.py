"""DELLA: who is kept how often, what is kept is worth, and whose numbers a name gives."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Recipe, Slot, identity
from merge_plugins.api import Region
from merge_plugins.cli import main
from merge_plugins.engine import MergedTensor
from merge_plugins.errors import MergeWarning, ParameterError
from merge_plugins.methods.della import Della, DellaLayerNorm, DellaLinear, DellaNoRank
from merge_plugins.methods.della_baselines import TiesRow
from merge_plugins.ops.random import keep_at_random
from merge_plugins.ops.selection import by_rank
from merge_plugins.plugins import registry

Merged = Callable[..., dict[str, MergedTensor]]
DISTINCT = {
    *("linear", "slerp", "passthrough", "task_arithmetic", "ties", "dare_linear", "dare_ties"),
    *("della", "della_norank", "della_layer_norm", "ties_row", "dare_della", "nodrop_elect"),
    *("nodrop_noelect", "dare_noelect", "ties_noelect"),
}
"""The repository's behaviours; nodrop_elect is ours for what it calls nodrop_ada_*."""
SCALES = ("ada_row", "ada_row_inv", "ada_layer")
ALIASES = {
    "della_noelect": "della",
    **{f"{m}_{scale}": m for m in ("della", "ties", "dare_della") for scale in SCALES},
    **{f"nodrop_{scale}": "nodrop_elect" for scale in SCALES},
}


def one(method: type, **parameters: Any) -> Any:
    """The method with one expert of weight 1, keep probabilities 0.63 to 0.77."""
    words = {"density": None, "drop_rate": 0.3, "epsilon": None, "window_size": 0.14}
    words |= parameters
    return method(weight=(1.0,), **{name: (value,) for name, value in words.items()})


def slot_of(delta: Tensor, seed: int = 0, **region: Any) -> Slot:
    return Slot("w", torch.zeros_like(delta), (delta,), seed=seed, **region)


def magprune(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Return keep probabilities as the paper's eq. 2 to 4 has them, row by row: float64."""
    probabilities = torch.empty(delta.shape, dtype=torch.float64)
    rows = zip(
        delta.view(-1, delta.shape[-1]), probabilities.view(-1, delta.shape[-1]), strict=True
    )
    for row, found in rows:
        n = len(row)
        ascending = sorted(range(n), key=lambda j: (abs(float(row[j])), -j))
        for rank, j in enumerate(ascending):
            found[j] = density - epsilon + 2 * epsilon * rank / (n - 1)
    return probabilities


@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -3.0, 1e-30]), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_of_equal_magnitudes_the_first_in_memory_ranks_as_the_largest(
    rows: list[list[float]], dtype: torch.dtype
) -> None:
    x = torch.tensor(rows, dtype=dtype)
    found = by_rank(x, torch.arange(5))
    for row, ranks in zip(x.abs().tolist(), found.tolist(), strict=True):
        assert [ranks.index(r) for r in range(5)] == sorted(range(5), key=lambda j: (-row[j], j))


@pytest.mark.parametrize("n", [1, 2, 65536, 65537, 1 << 18])
def test_rows_of_any_length_are_ranked(n: int) -> None:
    x = torch.randperm(n, generator=torch.Generator().manual_seed(0)).float()
    x = x if n > 256 else x.bfloat16()  # whole numbers that are exact
    assert torch.equal(by_rank(x, torch.arange(n)), n - 1 - x.long())
    many = torch.randn(n, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = many.float().abs().sort(descending=True, stable=True).indices.argsort()
    assert torch.equal(by_rank(many, torch.arange(n)), expected)


def test_keep_probabilities_are_the_papers() -> None:
    delta = torch.randn(5, 3, 11, generator=torch.Generator().manual_seed(0))
    delta[0, 0, 3:] = 0.0
    found = one(Della).probabilities(delta, 0.63, 0.77)
    assert found.dtype == torch.float32
    expected = magprune(delta, 0.7, 0.07)
    assert float((found.double() - expected).abs().max()) < 2**-24
    assert torch.equal(found, one(Della).probabilities(-3 * delta, 0.63, 0.77))


def test_without_ranks_probability_rises_with_the_magnitude() -> None:
    delta = torch.tensor([[0.0, -1.0, 3.0, 4.0], [2.0, -2.0, 2.0, 2.0]])
    found = one(DellaNoRank).probabilities(delta, 0.5, 0.9)
    expected = torch.tensor([[0.5, 0.6, 0.8, 0.9], [0.7, 0.7, 0.7, 0.7]])
    assert torch.allclose(found, expected)


def test_over_the_weight_ranks_ignore_rows() -> None:
    delta = torch.tensor([[0.0, -1.0], [5.0, 4.0]])
    found = one(DellaLayerNorm).probabilities(delta, 0.3, 0.6)
    assert torch.allclose(found, torch.tensor([[0.3, 0.4], [0.6, 0.5]]))


@pytest.mark.parametrize("method", [Della, DellaNoRank, DellaLayerNorm])
def test_a_row_of_one_entry_is_kept_with_the_density(method: type) -> None:
    for shape in ((), (1,), (1, 1)):
        found = one(method).probabilities(torch.ones(shape), 0.6, 0.8)
        assert torch.allclose(found, torch.full(shape, 0.7))
    column = one(Della).probabilities(torch.randn(4, 1), 0.6, 0.8)
    assert torch.allclose(column, torch.full((4, 1), 0.7))


def test_entries_are_kept_as_often_as_their_rank_says() -> None:
    delta = 0.5 + torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).abs()
    kernel, n_draws = one(DellaLinear, drop_rate=0.5, window_size=0.8), 4000
    expected = magprune(delta, 0.5, 0.4)
    kept, total = torch.zeros(3, 8), torch.zeros(3, 8, dtype=torch.float64)
    for seed in range(n_draws):
        slot = slot_of(delta, seed)
        (pruned,) = kernel.prune(slot, [delta.clone()])
        kept += pruned != 0
        total += pruned
        assert torch.allclose(pruned[pruned != 0].double(), (delta / expected)[pruned != 0])
    z = (kept - n_draws * expected) / (n_draws * expected * (1 - expected)).sqrt()
    assert float(z.abs().max()) < 4
    assert 0.4 < float(z.square().mean()) < 2.2  # 24 squares of standard normals
    spread = delta * ((1 - expected) / expected / n_draws).sqrt()
    assert float(((total / n_draws - delta) / spread).abs().max()) < 4  # unbiased


def test_neighbours_and_rows_are_kept_independently() -> None:
    ones = torch.ones(512, 512)
    slot = slot_of(ones)
    mask = keep_at_random(ones.clone(), slot, 0, torch.full_like(ones, 0.7))
    n = ones.numel()
    assert abs(float(mask.sum()) - 0.7 * n) < 4 * math.sqrt(n * 0.21)
    for lag in (1, 2, 8, 64, 511, 512, 513, 4096, 65536):
        first, second = mask.view(-1)[lag:], mask.view(-1)[:-lag]
        both = float((first * second).sum())
        assert abs(both - 0.49 * (n - lag)) < 5 * math.sqrt((n - lag) * 0.49 * 0.51)
    other = keep_at_random(ones.clone(), slot_of(ones, seed=1), 0, torch.full_like(ones, 0.7))
    assert abs(float((mask * other).sum()) - 0.49 * n) < 5 * math.sqrt(n * 0.49 * 0.51)


def test_a_keep_probability_is_met_to_thirty_one_bits() -> None:
    n = 1 << 18
    region = {"region": Region((1 << 40,), ((1 << 33, (1 << 33) + n),))}
    slot = slot_of(torch.ones(n), **region)
    for probability in (2**-12, 1 - 2**-12):
        found = keep_at_random(torch.ones(n), slot, 0, torch.full((n,), probability))
        expected = n * probability
        assert abs(float(found.sum()) - expected) < 4 * math.sqrt(n * 2**-12)
    for probability, count in ((0.0, 0), (1 - 2**-24, n)):
        found = keep_at_random(torch.ones(n), slot, 0, torch.full((n,), probability))
        assert abs(int(found.sum()) - count) <= 1


@given(data=st.data())
def test_a_box_gets_the_bits_of_the_whole(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))
    whole = keep_at_random(torch.ones(shape), slot_of(torch.ones(shape)), 0, torch.full(shape, 0.5))
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    box = Region(shape, tuple((start, stop) for start, stop in ends))
    ones = torch.ones(box.sizes)
    slot = slot_of(ones, region=box)
    assert torch.equal(
        keep_at_random(ones.clone(), slot, 0, torch.full(box.sizes, 0.5)), box.of(whole)
    )


@given(data=st.data(), numel=st.integers(1, 60))
def test_a_box_is_cut_into_blocks_of_whole_rows(data: st.DataObject, numel: int) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = Region(shape, tuple((start, n) for start, n in zip(starts, shape, strict=True)))
    blocks = list(box.rows().blocks(numel, whole_rows=True))
    assert all(block.bounds[-1] == (0, shape[-1]) for block in blocks)
    assert all(block.numel <= max(numel, shape[-1]) for block in blocks)
    found = torch.cat([block.index().reshape(-1) for block in blocks])
    assert torch.equal(found, box.rows().index().reshape(-1))
    wanted = [block.shared(box).of(torch.arange(math.prod(shape)).view(shape)) for block in blocks]
    assert torch.equal(torch.cat([w.reshape(-1) for w in wanted]), box.index().reshape(-1))


@pytest.fixture(scope="module")
def models(checkpoint: Callable[..., str]) -> list[str]:
    """A base of zeros, so that a merge is its merged task vector, and two fine-tunes."""
    generator = torch.Generator().manual_seed(0)
    moved = [0.01 * torch.randn(300, 40, generator=generator) for _ in range(2)]
    return [checkpoint({"w": weight}) for weight in (torch.zeros(300, 40), *moved)]


def merge(merged: Merged, models: list[str], method: str, **parameters: Any) -> Tensor:
    base, *experts = models
    given = {"weight": 1.0, **parameters}
    return merged(method, base, experts, **given)["w"][...]


def expert(merged: Merged, models: list[str]) -> Tensor:
    return merged("passthrough", None, models[1:2])["w"][...]


def test_a_name_with_mergekits_words_has_mergekits_numbers(
    merged: Merged, models: list[str]
) -> None:
    delta = expert(merged, models)
    found = merge(merged, models[:2], "della", density=0.7, epsilon=0.07)
    kept = found != 0
    factor = float(delta.abs().sum() / delta[kept].abs().sum())
    assert torch.allclose(found[kept], delta[kept] * factor, rtol=1e-5)
    assert torch.equal(found, merge(merged, models[:2], "della", density=0.7, epsilon=0.07,
                                    rescale="l1"))  # fmt: skip
    wider = merge(merged, models[:2], "della", density=0.7)  # epsilon 0.15
    assert torch.equal(wider, merge(merged, models[:2], "della_linear", density=0.7, epsilon=0.15))
    assert not torch.equal(wider != 0, kept)


@pytest.mark.parametrize("rescale", [None, True, 1, "1", "true", "inverse_keep"])
def test_a_name_with_dellas_words_has_dellas_numbers(
    rescale: Any, merged: Merged, models: list[str]
) -> None:
    delta = expert(merged, models)
    extra = {} if rescale is None else {"rescale": rescale}
    given = {"drop_rate": 0.3, "window_size": 0.14, "lambda_factor": 1.1, **extra}
    found = merge(merged, models[:2], "della", **given)
    expected = delta / magprune(delta, 0.7, 0.07) * 1.1
    assert torch.allclose(found.double()[found != 0], expected[found != 0], rtol=1e-5)
    assert abs(float((found != 0).float().mean()) - 0.7) < 0.02
    same = {"density": 0.7, "epsilon": 0.07, "rescale": "inverse_keep", "lambda": 1.1}
    assert torch.allclose(found, merge(merged, models[:2], "della", **same), rtol=1e-6)


@pytest.mark.parametrize("rescale", [False, 0, "0", "none"])
def test_rescale_none_leaves_what_is_kept_as_it_is(
    rescale: Any, merged: Merged, models: list[str]
) -> None:
    delta = expert(merged, models)
    for words in ({"density": 0.7}, {"drop_rate": 0.3}):
        found = merge(merged, models[:2], "della_linear", rescale=rescale, **words)
        assert torch.equal(found[found != 0], delta[found != 0])


def test_a_drop_rate_alone_is_a_window_of_nothing(merged: Merged, models: list[str]) -> None:
    delta = expert(merged, models)
    found = merge(merged, models[:2], "della", drop_rate=0.4)
    assert torch.allclose(found[found != 0], delta[found != 0] / 0.6, rtol=1e-6)


def test_two_models_are_merged_by_drop_elect_and_fuse(merged: Merged, models: list[str]) -> None:
    kept = [merge(merged, [models[0], model], "della", drop_rate=0.3) for model in models[1:]]
    found = merge(merged, models, "della", drop_rate=0.3)
    first_alone = (kept[0] != 0) & (found == kept[0])
    assert 0.2 < float(first_alone.float().mean()) < 0.7
    linear = merge(merged, models, "della_linear", drop_rate=0.3)
    averaged = merge(merged, models, "della_linear", drop_rate=0.3, normalize=True)
    assert torch.allclose(averaged, linear / 2)
    assert float(linear.abs().mean()) > float(averaged.abs().mean()) > 0


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_della", "dare_noelect"])
def test_dare_by_its_paper_divides_by_the_density(
    method: str, merged: Merged, models: list[str]
) -> None:
    delta = expert(merged, models)
    published = "inverse_keep" if method in ("dare_linear", "dare_ties") else 1
    found = merge(merged, models[:2], method, density=0.6, rescale=published)
    assert torch.allclose(found[found != 0], delta[found != 0] / 0.6, rtol=1e-6)
    assert 0.55 < float((found != 0).float().mean()) < 0.65


def test_ties_by_row_keeps_its_share_of_every_row(merged: Merged, models: list[str]) -> None:
    delta = expert(merged, models)
    found = merge(merged, models[:2], "ties_row", density=0.3, rescale=1)
    assert bool(((found != 0).sum(1) == 12).all())
    smallest_kept = torch.where(found != 0, delta.abs(), torch.inf).amin(1)
    assert bool((torch.where(found == 0, delta.abs(), 0.0).amax(1) <= smallest_kept).all())
    assert torch.allclose(found[found != 0], delta[found != 0])
    tied = TiesRow(weight=(1.0,), density=(0.5,)).trim({}, slot_of(delta), [torch.ones(2, 4)])
    assert tied[0].tolist() == [[1, 1, 0, 0]] * 2


@pytest.mark.parametrize("method", ["della", "della_norank", "ties_row"])
def test_a_slice_of_columns_reads_whole_rows_and_keeps_the_bits(
    method: str, merged: Merged, models: list[str]
) -> None:
    base, *experts = models
    tensor = merged(method, base, experts, weight=1.0, density=0.6)["w"]
    whole = tensor[...]
    for box in ((slice(None), slice(7, 9)), (slice(5, 90), slice(39, 40)), (slice(3, 4), slice(0))):
        assert torch.equal(tensor[box], whole[box])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0.7, "drop_rate": 0.3}, "density 0.7 and drop_rate 0.3 say the same thing"),
        ({"epsilon": 0.1, "window_size": 0.2}, r"epsilon 0.1 and window_size 0.2 .* write one"),
        (
            {"density": 0.9},
            r"must lie in \(0, 1\); got 0.9 ± 0.15. At this density epsilon is in \[0, 0.1\), "
            r"window_size in \[0, 0.2\)",
        ),
        ({"drop_rate": 0.75, "window_size": 0.5}, r"got 0.25 ± 0.25. .* epsilon is in \[0, 0.25\)"),
        ({"density": 0.5, "epsilon": -0.1}, r"got 0.5 ± -0.1"),
        ({"density": 0.0, "epsilon": 0.0}, r"got 0 ± 0. .* nothing is kept; leave the model out"),
        ({"density": 70}, r"density is a share .* got 70. For 70 % write density: 0.7"),
        ({"drop_rate": -0.1}, r"drop_rate is a share of the weights, in \[0, 1\]; got -0.1"),
        ({"rescale": "paper"}, "rescale is true or false or one of 0, 1 or one of 'none', 'l1'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_read(
    given: dict[str, Any], message: str, merged: Merged, models: list[str]
) -> None:
    with pytest.raises(ParameterError, match=message):
        merge(merged, models, "della", **given)


@pytest.mark.parametrize("epsilon", [0.15, 0.9])
def test_a_density_of_one_needs_no_window(
    epsilon: float, merged: Merged, models: list[str]
) -> None:
    found = merge(merged, models[:2], "della", density=1.0, epsilon=epsilon)
    assert torch.equal(found, expert(merged, models))


def test_a_task_vector_is_ranked_and_rescaled_in_float32_whatever_it_is_stored_in(
    checkpoint: Callable[..., str], merged: Merged
) -> None:
    values = 1 + torch.arange(64) / 64
    folders = [checkpoint({"w": w.bfloat16()}) for w in (torch.zeros(64), values)]
    base, expert = folders
    words = {"weight": 1.0, "drop_rate": 0.5, "window_size": 0.8, "out_dtype": "float32"}
    found = merged("della", base, [expert], **words)["w"][...]
    exact = values.bfloat16().double() / magprune(values.bfloat16(), 0.5, 0.4)
    assert torch.allclose(found.double()[found != 0], exact[found != 0], rtol=1e-6)


def test_the_repositorys_names_are_sixteen_methods_and_their_aliases() -> None:
    names = registry().named
    assert registry().methods.keys() >= DISTINCT
    assert len((DISTINCT - {"nodrop_elect"}) | ALIASES.keys()) == 28
    assert {alias: names[alias].name for alias in ALIASES} == ALIASES


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_merged_as_what_it_is_and_says_so_once(alias: str, models: list[str]) -> None:
    base, *experts = models
    given = {"base_model": base, "models": experts, "parameters": {"weight": 1.0}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Recipe.from_mapping({"merge_method": alias, **given})
        assert identity.digest(found) == identity.digest(Recipe.from_mapping(found.as_dict()))
        short = {"method": alias, "base": base, "models": experts, "weight": 1.0}
        assert Recipe.from_model_args(short) == found
    said = f"{alias} is the same as {ALIASES[alias]}: DELLA's code "
    assert [str(warning.message).startswith(said) for warning in caught] == [True, True]
    assert {warning.category for warning in caught} == {MergeWarning}
    assert found.merge_method == ALIASES[alias]
    assert found == Recipe.from_mapping({"merge_method": ALIASES[alias], **given})


def test_aliases_are_listed_under_their_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert not re.search(r"^  della_noelect", listed, re.M)
    words = " ".join(listed.split())
    assert "also named della_noelect, della_ada_row, della_ada_row_inv" in words
    assert main(["show", "nodrop_ada_row"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("nodrop_elect: ")
    assert "nodrop_ada_row is the same: DELLA's code never applies the adaptive scale" in shown
