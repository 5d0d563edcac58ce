"""Merging into memory that exists: the same bits, in its dtype, and next to nothing beside it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import write_zeros
from hypothesis import given
from hypothesis import strategies as st
from private_memory import STATUS, for_program
from torch import Tensor

from merge_plugins.api import ELEMENT, MATRIX, ROW, WHOLE, Granularity, Slot, Weight
from merge_plugins.engine import Merge, MergedTensor, open_merge
from merge_plugins.errors import CheckpointError, MismatchError
from merge_plugins.parallel import Place
from merge_plugins.plugins import Method

CPU = torch.device("cpu")
SHAPE = (3, 40, 50)
Make = Callable[..., MergedTensor]


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean, cut as finely as it is told."""

    granularity: Granularity

    def __call__(self, slot: Slot) -> Tensor:
        return slot.stacked().mean(0)

    def merge_matrix(self, weight: Weight) -> Tensor:
        return self(weight.part(weight.region))


@pytest.fixture(scope="module")
def make(checkpoint: Callable[..., str], recipe: Callable[..., Any]) -> Make:
    """A merged weight of two models, of few elements a block; there: by the way of a device."""
    generator = torch.Generator().manual_seed(0)
    models = [checkpoint({"w": torch.randn(SHAPE, generator=generator)}) for _ in range(2)]
    damaged = checkpoint({"w": torch.full(SHAPE, torch.nan)})

    def made(granularity: Granularity | None, *, there: bool = False, out: str = "") -> Any:
        given = {"out_dtype": out} if out else {}
        spelt = recipe("average_merging", None, models, **given)
        plan = open_merge(spelt).plan
        kernel = None if granularity is None else Mean(granularity)
        kept = {"experts": plan.tensors["w"].experts[:1]} if kernel is None else {}
        planned = dataclasses.replace(plan.tensors["w"], kernel=kernel, **kept)
        method = Method("mean", Mean, "tests")
        merge = Merge(dataclasses.replace(plan, method=method, tensors={"w": planned}), 1000)
        if there:
            merge.places[CPU] = Place(CPU, 1000, by_threads=False, room=1 << 20)
        return merge.tensors()["w"]

    made.damaged = open_merge(recipe("passthrough", None, [damaged]))  # type: ignore[attr-defined]
    return made


ranges = st.tuples(
    *(st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted) for size in SHAPE)
)


@given(
    st.sampled_from([ELEMENT, ROW, MATRIX, WHOLE, None]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(["", "bfloat16"]),
    st.permutations(range(3)),
    ranges,
    st.booleans(),
)
def test_into_equals_a_copy_of_what_is_merged(
    make: Make,
    granularity: Granularity | None,
    dtype: torch.dtype,
    out: str,
    order: list[int],
    ranges: tuple[list[int], ...],
    there: bool,
) -> None:
    tensor = make(granularity, there=there, out=out)
    index = tuple(slice(*bounds) for bounds in ranges)
    merged = tensor[index]
    memory = torch.full([merged.shape[dim] + 2 for dim in order], 7.0, dtype=dtype)
    view = memory[1:-1, 1:-1, 1:-1].permute([order.index(dim) for dim in range(3)])
    assert tensor.into(view, index) is view
    assert torch.equal(view, merged.to(dtype))
    view.fill_(7)
    assert (memory == 7).all(), "nothing was written beside it"


def test_memory_of_another_shape_is_refused(make: Make) -> None:
    tensor = make(ELEMENT)
    with pytest.raises(MismatchError, match=r"w is \[3, 40, 50\]; .* into \[40, 3, 50\]"):
        tensor.into(torch.empty(40, 3, 50))
    with pytest.raises(MismatchError, match=r"w is \[1, 40, 50\]"):
        tensor.into(torch.empty(SHAPE), slice(0, 1))


def test_a_parameter_that_requires_a_gradient_is_written_to(make: Make) -> None:
    tensor, parameter = make(ELEMENT), torch.nn.Parameter(torch.zeros(SHAPE))
    tensor.into(parameter)
    assert torch.equal(parameter.detach(), tensor[...])
    assert parameter.requires_grad


def test_damage_is_named_before_anything_is_copied(make: Any) -> None:
    target = torch.zeros(SHAPE)
    with pytest.raises(CheckpointError, match="w holds NaN or infinity"):
        make.damaged.tensors()["w"].into(target)
    assert not target.any()


MEASURE = """
import sys
import torch
from merge_plugins import Recipe, merged_tensors
from private_memory import peak_of

torch.set_num_threads(2)
method, dtype, *models = sys.argv[1:]
given = {"weight": 0.7, "density": 0.5} if method == "ties" else {}
models = models[:1] if method == "passthrough" else models
recipe = Recipe.from_mapping({
    "merge_method": method, "models": models, "parameters": given, "dtype": dtype,
    **({"base_model": models[0]} if method == "ties" else {}),
})
tensors = merged_tensors(recipe)
target = torch.zeros(tensors["w"].shape, dtype=torch.bfloat16)
tensors["small"].into(torch.empty(tensors["small"].shape))
_, peak = peak_of(lambda: tensors["w"].into(target))
print(peak)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("method", "dtype"), [("ties", "bfloat16"), ("passthrough", "float32")])
def test_nothing_as_large_as_the_weight_is_held_beside_it(
    method: str, dtype: str, tmp_path: Path
) -> None:
    models = [tmp_path / name for name in ("base", "a", "b")]
    for model in models:
        model.mkdir()
        (model / "config.json").write_text("{}")
        write_zeros(model, {"w": (6_000, 16_384), "small": (1 << 21,)})
    command = [sys.executable, "-c", MEASURE, method, dtype, *map(str, models)]
    said = subprocess.check_output(command, text=True, timeout=300, env=for_program())
    peak = int(said.split()[-1])
    assert peak < 120e6  # blocks in work; the weight is 197 MB, 393 in float32
