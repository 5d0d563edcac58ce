"""Zero, equal, opposite and many vectors for the methods that average on the sphere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mergekit_formulas as mergekit
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Recipe, Slot
from merge_plugins.engine import merged_tensors, open_merge, reader
from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.methods.karcher import Karcher
from merge_plugins.methods.multislerp import MultiSlerp
from merge_plugins.methods.nuslerp import NuSlerp
from merge_plugins.parallel import Place
from merge_plugins.plugins import registry
from merge_plugins.testing import in_memory


def merge(kernel: Any, *experts: Tensor, base: Tensor | None = None) -> Tensor:
    """Merge one whole weight in memory, as the runner would."""
    return in_memory.merged(kernel, Slot("w", base, experts))


def drawn(*shape: int, seed: int = 0, n: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


NUSLERPS = [
    NuSlerp(weight=(0.5, 0.5), nuslerp_flatten=flatten, nuslerp_row_wise=rows)
    for flatten, rows in ((True, False), (False, False), (False, True))
]
ALL = [*NUSLERPS, MultiSlerp(weight=(0.5, 0.5)), Karcher()]
every_mean = pytest.mark.parametrize("kernel", ALL, ids=repr)


@every_mean
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_zero_weights_is_zero(kernel: Any, dtype: torch.dtype) -> None:
    zero = torch.zeros(3, 4, dtype=dtype)
    assert not merge(kernel, zero, zero).any()


@every_mean
def test_a_zero_weight_and_another_keep_the_direction_of_the_other(kernel: Any) -> None:
    (x,) = drawn(3, 4, n=1)
    merged = merge(kernel, torch.zeros(3, 4), x)
    if isinstance(kernel, NuSlerp):  # a quarter circle from nowhere
        assert torch.allclose(merged, x * 0.5**0.5)
    else:
        assert torch.allclose(merged, x / 2)


@every_mean
def test_parallel_weights_of_other_lengths_give_the_mean_length(kernel: Any) -> None:
    (x,) = drawn(3, 4, n=1)
    assert torch.allclose(merge(kernel, x, 3 * x), 2 * x, rtol=1e-4, atol=1e-5)


@every_mean
def test_opposite_weights_give_something_finite_and_no_longer_than_either(kernel: Any) -> None:
    x = torch.tensor([[3.0, 4.0]])
    merged = merge(kernel, x, -x)
    assert torch.isfinite(merged).all()
    assert float(merged.norm()) <= 5.001


@every_mean
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0)])
def test_weights_of_one_or_no_element_have_a_mean(kernel: Any, shape: tuple[int, ...]) -> None:
    first, second = torch.full(shape, 2.0), torch.full(shape, 3.0)
    assert torch.allclose(merge(kernel, first, second), torch.full(shape, 2.5))


@pytest.mark.parametrize("kernel", NUSLERPS[1:], ids=["rows", "columns"])
def test_rows_and_columns_of_zeros_have_no_direction(kernel: NuSlerp) -> None:
    first, second = drawn(4, 4)
    first[1], second[2], first[3], second[3] = 0.0, 0.0, 0.0, 0.0
    dim = 0 if kernel.nuslerp_row_wise else 1
    merged = merge(kernel, *((x.T.contiguous() if dim == 0 else x) for x in (first, second)))
    merged = merged.T if dim == 0 else merged
    assert torch.allclose(merged[1], second[1] * 0.5**0.5)
    assert torch.allclose(merged[2], first[2] * 0.5**0.5)
    assert not merged[3].any()
    expected = mergekit.slerp(first[:1].double(), second[:1].double(), 0.5, 1)
    assert torch.allclose(merged[:1].double(), expected, atol=1e-6)


@pytest.mark.parametrize("base", [None, torch.ones(5, 3)])
def test_one_model_stays_as_it_is_under_multislerp(base: Tensor | None) -> None:
    (x,) = drawn(5, 3, n=1)
    merged = merge(MultiSlerp(weight=(0.3,)), x, base=base)
    assert torch.equal(merged, x)
    assert merged is not x


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_mean_of_any_number_of_models_is_that_of_the_formula(n: int) -> None:
    experts = drawn(7, 11, n=n)
    stacked = torch.stack(experts).double()
    assert torch.allclose(merge(Karcher(), *experts).double(), mergekit.karcher(stacked), atol=1e-6)
    weight = tuple(0.2 * (i + 1) for i in range(n))
    if n > 1:
        merged = merge(MultiSlerp(weight=weight), *experts)
        assert torch.allclose(merged.double(), mergekit.multislerp(stacked, weight), atol=1e-6)


@given(seed=st.integers(0, 99), step=st.sampled_from([1e-2, 1e-3, 1e-4, 1e-5]))
def test_the_karcher_mean_of_close_models_is_close_to_their_average(seed: int, step: float) -> None:
    base, *moves = drawn(9, 8, seed=seed, n=4)
    experts = [base + step * move for move in moves]
    average = torch.stack(experts).double().mean(0)
    off = (merge(Karcher(), *experts).double() - average).abs().max()
    assert float(off) < 10 * step**2 + 2e-6


def test_the_karcher_mean_is_where_no_step_is_left() -> None:
    experts = drawn(6, 6, n=4)
    mean = merge(Karcher(max_iter=100, tol=1e-9), *experts).double()
    mean, tangent = mean / mean.norm(), torch.zeros(6, 6).double()
    for expert in experts:
        unit = expert.double() / expert.double().norm()
        angle = (unit * mean).sum().acos()
        tangent += angle / angle.sin() * (unit - (unit * mean).sum() * mean)
    assert float(tangent.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # no copy of one in the other
@pytest.mark.parametrize(
    ("method", "on_base"), [("karcher", False), ("multislerp", False), ("multislerp", True)]
)
def test_what_is_kept_of_a_weight_meanwhile_changes_no_bit(
    method: str,
    on_base: bool,
    dtype: torch.dtype,
    checkpoint: Callable[..., str],
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Merged at once with room for its blocks, then without, then in parts."""
    base, *moves = drawn(9, 40, n=4)
    models = [checkpoint({"w": (base + 0.05 * move).to(dtype)}) for move in (0 * base, *moves)]
    monkeypatch.setattr(reader, "CPU", Place(block=64))
    given = {"weight": 0.3} if method == "multislerp" else {}
    spelt = recipe(method, models[0] if on_base else None, models[1:], **given)
    opened = [open_merge(spelt, block=48) for _ in range(3)]
    opened[0].share = 1 << 20
    kept, streamed, parts = (merge.tensors()["w"] for merge in opened)
    merged = kept[...]
    assert merged.shape == (9, 40)
    assert torch.equal(merged, streamed[...])
    assert torch.equal(merged, torch.cat([parts[:2], parts[2:]]))
    for measured in kept._measured.values():  # what is as large is not kept for ever
        assert all(found.shape != (9, 40) for found in measured.values())
    assert torch.equal(merged, kept[...])


def test_a_base_that_is_not_listed_is_one_more_model_for_karcher_only(
    checkpoint: Callable[..., str],
) -> None:
    base, first, second = (checkpoint({"w": x}) for x in drawn(4, 4, n=3))
    plain = {"merge_method": "karcher", "models": [{"model": first}, {"model": second}]}
    without = merged_tensors(Recipe.from_mapping(plain))["w"][...]
    on_base = Recipe.from_mapping({**plain, "base_model": base})
    listed = Recipe.from_mapping({**plain, "models": [*plain["models"], {"model": base}]})
    assert [str(model.ref) for model in on_base.models] == [first, second, base]
    merged = merged_tensors(on_base)["w"][...]
    assert torch.equal(merged, merged_tensors(listed)["w"][...])
    assert not torch.allclose(merged, without)
    plain["merge_method"] = "average_merging"
    assert len(Recipe.from_mapping({**plain, "base_model": base}).models) == 2


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_a_base_turns_models_into_task_vectors_listed_or_not(
    name: str, checkpoint: Callable[..., str]
) -> None:
    base, *experts = drawn(4, 4, n=3)
    folders = [checkpoint({"w": x}) for x in (base, *experts)]
    models = [{"model": folder, "parameters": {"weight": 0.5}} for folder in folders[1:]]
    plain = {"merge_method": name, "models": models, "base_model": folders[0]}
    merged = merged_tensors(Recipe.from_mapping(plain))["w"][...]
    listed = {**plain, "models": [{"model": folders[0]}, *models]}
    assert torch.equal(merged, merged_tensors(Recipe.from_mapping(listed))["w"][...])
    kernel = registry().get(name).factory(weight=(0.5, 0.5))
    moved = merge(kernel, *(expert - base for expert in experts))
    assert torch.allclose(merged, base + moved, atol=1e-6)


def test_parameters_out_of_range_are_refused_and_say_so() -> None:
    with pytest.raises(ParameterError, match="sum to zero"):
        MultiSlerp(weight=(0.5, -0.5))
    with pytest.raises(ParameterError, match="0 or more; got -1"):
        MultiSlerp(weight=(0.5,), eps=-1.0)
    with pytest.raises(ParameterError, match="number of steps"):
        Karcher(max_iter=-1)
    MultiSlerp(weight=(0.5, -0.5), normalize_weights=False)


def test_nuslerp_takes_two_models(checkpoint: Callable[..., str]) -> None:
    folders = [checkpoint({"w": x}) for x in drawn(2, 2, n=3)]
    plain = {"merge_method": "nuslerp", "models": folders, "parameters": {"weight": 1.0}}
    with pytest.raises(RecipeError, match="takes 2 models; got 3"):
        merged_tensors(Recipe.from_mapping(plain))
