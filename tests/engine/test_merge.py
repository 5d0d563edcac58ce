"""Merged tensors exist only while somebody looks at them, and are right whoever looks."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins.api import ELEMENT, ROW, WHOLE, Granularity, Region, Slot, as_region
from merge_plugins.engine import Merge, open_merge
from merge_plugins.errors import CheckpointError, MismatchError, PluginError, RecipeError
from merge_plugins.parallel import BLOCK
from merge_plugins.plugins import Method, registry

Write = Callable[..., str]
Merged = Callable[..., Any]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mean(checkpoint: Write, merged: Merged) -> Any:
    """The lazy mean of two weights of three blocks."""
    models = [checkpoint({"w": numbers(300, 1000, seed=i)}) for i in range(2)]
    return merged("average_merging", None, models)["w"]


def test_a_merged_tensor_says_what_it_is_without_merging(mean: Any) -> None:
    assert (mean.name, mean.shape, mean.dtype) == ("w", torch.Size([300, 1000]), torch.float32)
    assert (mean.get_shape(), mean.get_dtype()) == ([300, 1000], "F32")
    assert (mean.ndim, mean.numel(), mean.is_floating_point()) == (2, 300_000, True)
    assert mean.device == torch.device("cpu")
    assert repr(mean) == "MergedTensor(w, [300, 1000], torch.float32)"


def test_a_merged_tensor_is_merged_when_it_is_looked_at(mean: Any) -> None:
    expected = (numbers(300, 1000) + numbers(300, 1000, seed=1)) / 2
    assert torch.allclose(mean[...], expected, atol=1e-7)
    assert torch.equal(mean[...], mean[:])
    assert mean.to(torch.bfloat16).dtype == torch.bfloat16


INDICES = [
    ...,
    slice(None),
    (slice(3, 7),),
    (slice(3, 7), slice(10, 500)),
    (..., slice(1, 2)),
    (slice(250, None), ...),
    (slice(-5, None), slice(None, -990)),
    (slice(5, 5),),
    (slice(7, 3), slice(None)),
    (slice(0, 10**9),),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_any_box_can_be_looked_at(index: Any, mean: Any) -> None:
    part = mean[index]
    assert torch.equal(part, mean[...][index])
    assert part.is_contiguous()


@pytest.mark.parametrize(
    "index", [3, (3, 4), slice(None, None, 2), None, torch.tensor([1])], ids=str
)
def test_what_is_no_box_is_refused(index: Any, mean: Any) -> None:
    with pytest.raises(TypeError, match="indexed with plain slices"):
        mean[index]


@settings(max_examples=50)
@given(shape=st.lists(st.integers(0, 8), max_size=3), data=st.data())
def test_slices_mean_what_they_mean_to_torch(shape: list[int], data: st.DataObject) -> None:
    whole = torch.arange(Region.whole(shape).numel).view(shape)
    index = tuple(data.draw(st.slices(n).filter(lambda s: s.step in (None, 1))) for n in shape)
    assert torch.equal(as_region(index, shape).of(whole), whole[index])


def test_a_result_is_never_an_input(checkpoint: Write, merged: Merged) -> None:
    folder = checkpoint({"w": numbers(5, 5), "steps": torch.tensor([3])})
    tensors = merged("passthrough", None, [folder])
    for name in ("w", "steps"):
        tensors[name][...].fill_(9)
        assert not (tensors[name][...] == 9).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_are_never_written(dtype: torch.dtype, checkpoint: Write, merged: Merged) -> None:
    models = [checkpoint({"w": numbers(400, 500, seed=i).to(dtype)}) for i in range(3)]
    files = [Path(folder, "model.safetensors") for folder in models]
    before = [file.read_bytes() for file in files]
    for name in ("ties", "model_stock", "dare_ties", "ties_merging", "mask_merging", "iso_cts"):
        required = {"weight": 0.5} if "weight" in registry().get(name).parameters else {}
        merged(name, models[0], models[1:], **required)["w"][...]
    assert [file.read_bytes() for file in files] == before


LIVE = ("adamerging", "cocktail", "emr", "fisher_merging", "regmean_merging", "twin_merging")
"""Methods that run the models, which these are not; test_calibration damages some that are."""


@pytest.mark.parametrize("damage", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("whose", ["base", "expert"])
@pytest.mark.parametrize("name", [name for name in registry().methods if name not in LIVE])
def test_a_damaged_weight_is_named_by_file_tensor_and_position(
    name: str, whose: str, damage: float, checkpoint: Write, merged: Merged
) -> None:
    method = registry().get(name)
    if whose == "base" and not method.needs_base:
        return
    n = max(method.min_experts, min(2, method.max_experts or 2))
    weights = {"base": numbers(400, 500), "expert": numbers(400, 500, seed=1)}
    weights[whose][399, 123] = damage  # in the last of two blocks
    folders = {key: checkpoint({"w": weight}) for key, weight in weights.items()}
    others = [checkpoint({"w": numbers(400, 500, seed=i + 2)}) for i in range(n - 1)]
    required = {p.name: 0.5 for p in method.parameters.values() if p.required}
    dropping = {"density": 0.01, "epsilon": 0.005, "weight_mask_rate": 0.99}
    given = {key: value for key, value in dropping.items() if key in method.parameters}
    base = folders["base"] if method.needs_base else None
    tensors = merged(name, base, [folders["expert"], *others], **required, **given)
    expected = (
        rf"{folders[whose]}/model.safetensors: w holds NaN or infinity, first at \[399, 123\]"
    )
    with pytest.raises(CheckpointError, match=expected):
        tensors["w"][...]


def test_finite_weights_that_overflow_say_so(checkpoint: Write, merged: Merged) -> None:
    folder = checkpoint({"w": torch.full((3,), 60000.0)})
    tensors = merged("passthrough", None, [folder], scale=2.0, out_dtype="float16")
    expected = r"w: passthrough gave NaN, infinity or a value beyond torch.float16 from finite"
    with pytest.raises(MismatchError, match=expected):
        tensors["w"][...]
    half = checkpoint({"w": torch.full((3,), 60000.0).half()})
    fine = merged("passthrough", None, [half])["w"][...]  # the sum overflows, no element does
    assert fine.tolist() == [60000.0] * 3


def test_buffers_are_copied_when_all_models_agree(checkpoint: Write, merged: Merged) -> None:
    weights = {"w": numbers(3), "position_ids": torch.arange(4), "mask": torch.tensor([True])}
    models = [checkpoint(weights) for _ in range(3)]
    tensors = merged("task_arithmetic", models[0], models[1:])
    assert tensors["position_ids"][...].tolist() == [0, 1, 2, 3]
    assert tensors["position_ids"][1:3].tolist() == [1, 2]
    assert tensors["mask"].dtype == torch.bool


def test_buffers_that_disagree_are_an_error(checkpoint: Write, merged: Merged) -> None:
    models = [checkpoint({"w": numbers(3), "steps": torch.tensor(i)}) for i in range(2)]
    tensors = merged("average_merging", None, models)
    with pytest.raises(MismatchError, match="steps"):
        tensors["steps"][...]
    assert tensors["w"][...].shape == (3,)


def test_the_recipes_dtype_is_what_inputs_are_cast_to(checkpoint: Write, merged: Merged) -> None:
    models = [checkpoint({"w": numbers(50, seed=i)}) for i in range(2)]
    found = merged("average_merging", None, models, dtype="bfloat16")["w"][...]
    inputs = [numbers(50, seed=i).bfloat16().float() for i in range(2)]
    assert torch.equal(found, (sum(inputs) / 2).bfloat16())
    kept = merged("average_merging", None, models, dtype="bfloat16", out_dtype="float32")["w"][...]
    assert torch.equal(kept, sum(inputs) / 2)


def test_an_expert_in_float32_on_a_bfloat16_base_is_not_rounded_first(
    checkpoint: Write, merged: Merged
) -> None:
    base, expert = numbers(500).bfloat16(), numbers(500, seed=1)
    models = checkpoint({"w": base}), checkpoint({"w": expert})
    found = merged("task_arithmetic", models[0], [models[1]], **{"lambda": 0.5})["w"][...]
    assert torch.equal(found, (base.float() + 0.5 * (expert - base.float())).bfloat16())


def test_callers_in_many_threads_get_the_same_bits(checkpoint: Write, merged: Merged) -> None:
    names = {str(i): i for i in range(6)}
    models = [
        checkpoint({name: numbers(64, 80, seed=9 * m + i) for name, i in names.items()})
        for m in range(3)
    ]
    tensors = merged("ties", models[0], models[1:], weight=0.5, density=0.3)
    expected = {name: tensor[...] for name, tensor in tensors.items()}
    fresh = merged("ties", models[0], models[1:], weight=0.5, density=0.3)
    found: list[tuple[str, Tensor]] = []

    def look(start: int) -> None:
        for i in range(start, start + 6):
            found.append((str(i % 6), fresh[str(i % 6)][...]))

    threads = [threading.Thread(target=look, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert all(torch.equal(weight, expected[name]) for name, weight in found)


@dataclasses.dataclass(frozen=True)
class Whole:
    """The mean of the experts, by a method that takes whole weights; notes what it is given."""

    shapes: list[Any] = dataclasses.field(default_factory=list)

    def __call__(self, slot: Slot) -> Tensor:
        self.shapes.append(tuple(slot.shape))
        return torch.stack(slot.experts).float().mean(0)


@pytest.fixture
def merge_by(checkpoint: Write, recipe: Callable[..., Any]) -> Callable[..., Merge]:
    """Merge with a method of the test's own."""

    def make(kernel: Any, **facts: Any) -> Merge:
        models = [checkpoint({"w": numbers(900, 600, seed=i)}) for i in range(2)]
        found = open_merge(recipe("average_merging", None, models)).plan
        tensors = {n: dataclasses.replace(t, kernel=kernel) for n, t in found.tensors.items()}
        method = Method("mine", type(kernel), "tests", **facts)
        return Merge(dataclasses.replace(found, method=method, tensors=tensors))

    return make


def test_a_method_of_whole_weights_sees_them_whole_whatever_is_asked(merge_by: Any) -> None:
    assert BLOCK < 900 * 600
    kernel = Whole()
    tensor = merge_by(kernel).tensors()["w"]
    part = tensor[3:5, 10:20]
    assert kernel.shapes == [(900, 600)]
    assert part.is_contiguous()
    assert torch.equal(part, tensor[...][3:5, 10:20])


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A kernel that does not keep the shape."""

    granularity: Granularity

    def __call__(self, slot: Slot) -> Tensor:
        return slot.experts[0].reshape(-1)


@pytest.mark.parametrize("granularity", [ELEMENT, ROW, WHOLE])
def test_a_kernel_that_changes_the_shape_is_named(granularity: Granularity, merge_by: Any) -> None:
    tensor = merge_by(Wrong(granularity)).tensors()["w"]
    with pytest.raises(MismatchError, match=r"mine \(.*\) returned \[.*\] for w \[.*\]; a k"):
        tensor[...]


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A method that asks for data which the recipe does not name."""

    what: str

    def prepare(self, sources: Any) -> None:
        assert list(sources.names)
        {
            "examples": lambda: sources.examples(0),
            "stat": lambda: sources.stat("fisher", 0),
        }[self.what]()

    def __call__(self, slot: Slot) -> Tensor:
        return slot.experts[0].float()


@pytest.mark.parametrize("what", ["examples", "stat"])
def test_calibration_data_is_never_made_up(what: str, merge_by: Any) -> None:
    tensor = merge_by(Calibrated(what)).tensors()["w"]
    with pytest.raises(RecipeError, match=r"mine: needs calibration data for .*; add data:"):
        tensor[...]


@dataclasses.dataclass(frozen=True)
class LooksOnce:
    """A method that prepares; counts how often."""

    looks: list[int] = dataclasses.field(default_factory=list)

    def prepare(self, sources: Any) -> Whole:
        self.looks.append(sum(weight.shape.numel() for weight in sources.slots()))
        return Whole()

    def __call__(self, slot: Slot) -> Tensor:
        raise AssertionError("it prepared another kernel")


def test_a_method_that_prepares_looks_at_everything_once(merge_by: Any) -> None:
    kernel = LooksOnce()
    tensor = merge_by(kernel).tensors()["w"]
    threads = [threading.Thread(target=lambda: tensor[...]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kernel.looks == [540_000]


def test_a_kernel_that_raises_is_not_swallowed(merge_by: Any) -> None:
    @dataclasses.dataclass(frozen=True)
    class Broken:
        granularity: Granularity

        def __call__(self, slot: Slot) -> Tensor:
            raise ZeroDivisionError("mine")

    for granularity in (ELEMENT, ROW, WHOLE):
        tensor = merge_by(Broken(granularity)).tensors()["w"]
        with pytest.raises(PluginError, match=r"failed on w: ZeroDivisionError: mine \(test_merge"):
            tensor[...]
