"""Merging by compiled code: the same bits or the kernel, and one line in the log that says which.

What a kernel does is recorded without a compiler; tests that compile are skipped without one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_plugins.api import ELEMENT, Slot
from merge_plugins.engine import Merge, compiled, open_merge
from merge_plugins.engine.recording import Recording, RecordingError
from merge_plugins.errors import CheckpointError
from merge_plugins.plugins import Method

SHAPE = (300, 401)
has_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler, which torch needs"
)
Make = Callable[..., Merge]


@pytest.fixture(scope="module")
def models(checkpoint: Callable[..., str]) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(SHAPE, generator=generator)
    drawn = [base + 0.1 * torch.randn(SHAPE, generator=generator) for _ in range(3)]
    return [checkpoint({"w": w.bfloat16(), "v": w.T.bfloat16()}) for w in drawn]


@pytest.fixture
def make(models: list[str], recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Make:
    """A merge of two models onto a third, by compiled code; by a kernel of ours if one is given."""
    monkeypatch.setattr(compiled, "_compiler", compiled.Compiler())
    monkeypatch.setattr(compiled, "BLOCK", 1 << 16)

    def made(kernel: Any = None, *, by_code: bool = True, **parameters: Any) -> Merge:
        method, experts = parameters.pop("method", "ties"), parameters.pop("experts", models[1:])
        spelt = recipe(method, models[0], experts, **{"weight": 0.5, **parameters})
        plan = open_merge(spelt.compiling(by_code)).plan
        if kernel is not None:
            method = Method("mine", type(kernel), "tests")
            tensors = {
                name: dataclasses.replace(planned, kernel=kernel)
                for name, planned in plan.tensors.items()
            }
            plan = dataclasses.replace(plan, method=method, tensors=tensors)
        return Merge(plan)

    return made


def bits(merge: Merge) -> list[Tensor]:
    return [tensor[...].view(torch.int16) for tensor in merge.tensors().values()]


def same(one: Merge, other: Merge) -> bool:
    return all(map(torch.equal, bits(one), bits(other)))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What our log says, without torch's."""
    ours = [record for record in caplog.records if record.name.startswith("merge_plugins")]
    return [record.getMessage() for record in ours]


@has_compiler
def test_one_function_serves_every_weight_and_every_value(
    make: Make, checkpoint: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """And it finds NaN in a source."""
    caplog.set_level(logging.INFO, "merge_plugins")
    for weight, scale in ((0.6, 0.5), (0.3, 0.5), (0.3, 0.7)):
        given = {"method": "task_arithmetic", "weight": weight, "lambda": scale}
        assert same(make(**given), make(**given, by_code=False)), given
    (line,) = said(caplog)
    assert line.startswith("task_arithmetic: compiled in ")
    (function,) = compiled._compiler._functions.values()
    assert function.seen == 6
    damaged = torch.ones(SHAPE, dtype=torch.bfloat16)
    damaged[299, 400] = torch.nan
    bad = [checkpoint({"w": each, "v": each.T.contiguous()}) for each in (damaged, damaged + 0)]
    with pytest.raises(CheckpointError, match="NaN"):
        make(**given, experts=bad).tensors()["w"][...]
    assert function.seen == 7
    other = torch.empty(SHAPE)  # of another dtype, which is another program
    make(**given).tensors()["w"].into(other)
    assert torch.equal(other, make(**given, by_code=False).tensors()["w"][...].float())


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A method's kernel, from a function."""

    function: Callable[[Slot], Tensor]
    granularity = ELEMENT

    def __call__(self, slot: Slot) -> Tensor:
        return self.function(slot)


FACTOR = [1.0]


def fused(slot: Slot) -> Tensor:
    """Round a product and its sum at once, which compiled code does not do."""
    return torch.add(slot.base.float(), slot.experts[0].float(), alpha=FACTOR[0])


@has_compiler
def test_other_bits_mean_the_kernel_and_a_warning(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Another factor may round otherwise, so it is compared anew: nothing is lost to a half."""
    caplog.set_level(logging.INFO, "merge_plugins")
    for factor in (0.5, 0.3):
        FACTOR[0] = factor
        assert same(make(Kernel(fused)), make(Kernel(fused), by_code=False))
    compiled_it, refused = said(caplog)
    assert compiled_it.startswith("mine: compiled in")
    assert refused == "mine merges without compiled code: compiled, it gives other bits"


def asks(slot: Slot) -> Tensor:
    return slot.base * float(slot.base.max())


def draws(slot: Slot) -> Tensor:
    return slot.base + torch.rand(slot.shape, generator=torch.Generator().manual_seed(1))


def leaves_torch(slot: Slot) -> Tensor:
    return torch.from_numpy(slot.base.float().numpy() + 1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (asks, "its next step depends on the numbers in a block"),
        (draws, "it draws random numbers"),
        (leaves_torch, "numpy() is not supported"),
    ],
)
def test_what_cannot_be_recorded_merges_by_its_kernel(
    function: Callable[[Slot], Tensor],
    reason: str,
    make: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel = Kernel(function)
    assert same(make(kernel), make(kernel, by_code=False))
    (line,) = said(caplog)
    assert line.startswith("mine merges without compiled code: ")
    assert reason in line


@functools.cache
def kept(n: int) -> Tensor:
    return torch.arange(n)


def test_a_tensor_that_a_kernel_keeps_from_a_recording_is_made_anew() -> None:
    kept.cache_clear()
    data = torch.ones(9000)
    with Recording() as first:
        kept(9000)
    assert torch.equal(kept(9000) + 1, torch.arange(1, 9001))
    second = Recording()
    blank = second.blank(data)
    with second:
        total = blank + kept(9000)
    assert [tensor.dtype for tensor in second.finish([total]).inputs] == [data.dtype, torch.int64]
    other = first.blank(data)
    with second, pytest.raises(RecordingError, match="keeps tensors of one block"):
        blank + other
    kept.cache_clear()


def test_a_recording_writes_to_nothing_that_is_real() -> None:
    recording, real = Recording(), torch.zeros(9000)
    blank = recording.blank(torch.ones(9000))
    with recording, pytest.raises(RecordingError, match="writes to a tensor that is not of this"):
        real.add_(blank)
    assert not real.any()


def test_without_a_compiler_it_says_so_once_and_merges(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for method in ("task_arithmetic", "ties"):
        assert same(make(method=method), make(method=method, by_code=False))
    (line,) = said(caplog)
    expected = (
        "task_arithmetic merges without compiled code: it cannot be compiled: no C++ compiler"
    )
    assert line.startswith(expected)
