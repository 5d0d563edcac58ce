"""The way a weight takes to another device: here on the CPU, which has the same way."""

from __future__ import annotations

import dataclasses
import operator
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Slot
from merge_plugins.api import ELEMENT, Kernel, Region, Sources
from merge_plugins.engine import Merge, open_merge
from merge_plugins.engine.carrier import Carrier
from merge_plugins.engine.elsewhere import brought_back
from merge_plugins.engine.there import There
from merge_plugins.errors import PluginError
from merge_plugins.outputs.lazy_tensor import LazyTensor
from merge_plugins.parallel import Place
from merge_plugins.plugins import Method
from merge_plugins.weights import StoredTensor

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of two models, on a device of little memory."""

    most: int = 1 << 60
    granularity = ELEMENT

    def __call__(self, slot: Slot) -> Tensor:
        if slot.shape.numel() > self.most:
            raise torch.OutOfMemoryError("no room")
        return slot.stacked().mean(0)


@dataclasses.dataclass(frozen=True)
class OnlyHere:
    """The mean by a method that needs numpy, which sees no other device's memory."""

    granularity = ELEMENT

    def __call__(self, slot: Slot) -> Tensor:
        if threading.current_thread() is threading.main_thread():
            raise TypeError("can't convert device tensors to numpy")
        return slot.stacked().mean(0)


@pytest.fixture
def merge(checkpoint: Callable[..., str], recipe: Callable[..., Any]) -> Callable[[Any], Merge]:
    """Merge two models with a method of the test's own, by the way of another device."""
    generator = torch.Generator().manual_seed(0)
    paths = [
        checkpoint({"w": torch.randn(12, 1 << 16, generator=generator), "n": torch.ones(7)})
        for _ in range(2)
    ]

    def make(kernel: Any) -> Merge:
        plan = open_merge(recipe("average_merging", None, paths)).plan
        tensors = {n: dataclasses.replace(t, kernel=kernel) for n, t in plan.tensors.items()}
        method = Method(type(kernel).__name__, type(kernel), "tests")
        made = Merge(dataclasses.replace(plan, method=method, tensors=tensors))
        made.places[CPU] = Place(CPU, 1 << 20, by_threads=False, room=1 << 30)
        return made

    return make


@pytest.fixture
def expected(merge: Callable[[Any], Merge]) -> Tensor:
    return merge(Mean()).tensors()["w"][...]


def test_too_little_memory_takes_smaller_blocks(
    merge: Callable[[Any], Merge], expected: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    assert torch.equal(merge(Mean(most=1 << 18)).tensors()["w"][...], expected)
    assert not caplog.records


def test_far_too_little_memory_takes_the_cpu_and_says_so(
    merge: Callable[[Any], Merge], expected: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    tight = merge(Mean(most=1 << 17))
    tight.here = dataclasses.replace(tight.here, block=1 << 16)
    tensors = tight.tensors()
    assert torch.equal(tensors["w"][...], expected)
    assert torch.equal(tensors["w"][2:5], expected[2:5])
    (said,) = caplog.messages
    assert said == "Mean merges on the CPU what goes to cpu: no room"


def test_a_method_that_cannot_run_there_takes_the_cpu_and_says_so(
    merge: Callable[[Any], Merge], expected: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    assert torch.equal(merge(OnlyHere()).tensors()["w"][...], expected)
    assert "OnlyHere merges on the CPU what goes to cpu: can't convert" in caplog.text


@dataclasses.dataclass(frozen=True)
class Broken:
    """A method with a fault."""

    granularity = ELEMENT

    def __call__(self, slot: Slot) -> Tensor:
        raise RuntimeError("a fault of its own")


def test_a_fault_of_the_method_is_raised(merge: Callable[[Any], Merge]) -> None:
    with pytest.raises(PluginError, match="RuntimeError: a fault of its own"):
        _ = merge(Broken()).tensors()["w"][...]


def test_a_weight_is_read_once_if_there_is_room_for_it(
    checkpoint: Callable[..., str], recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [checkpoint({"w": torch.randn(40, 50) + i}) for i in range(3)]
    read: list[int] = []
    into = StoredTensor.read_into
    monkeypatch.setattr(
        StoredTensor,
        "read_into",
        lambda self, target, region: (read.append(region.numel), into(self, target, region)),
    )

    def n_read(room: int) -> int:
        merge = open_merge(recipe("ties", paths[0], paths[1:], weight=0.5, density=0.5))
        merge.places[CPU] = Place(CPU, 500, by_threads=False, room=room)
        read.clear()
        _ = merge.tensors()["w"][...]
        return sum(read)

    assert n_read(3 * 4 * 2000) == 3 * 2000
    assert n_read(0) == 2 * 3 * 2000  # to be measured, and to be merged


@given(dtype=DTYPES, by=st.floats(0.01, 100), kind=st.integers(0, 4), seed=st.integers(0, 99))
def test_division_by_a_number_is_what_it_is_without_the_mode(
    dtype: torch.dtype, by: float, kind: int, seed: int
) -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed)).to(dtype)
    ways: list[Callable[[Tensor, Any], Tensor]] = [
        lambda x, by: x / by,
        lambda x, by: torch.div(x, by),
        lambda x, by: x.clone().div_(by),
        lambda x, by: operator.itruediv(x.clone(), by),
        lambda x, by: x.clone().div_(torch.tensor(by)),
    ]
    expected = ways[kind](x, by)
    with There(CPU):
        found = ways[kind](x, by)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_a_lazy_tensor_is_merged_where_it_is_moved_or_copied_to(
    merge: Callable[[Any], Merge], expected: Tensor
) -> None:
    tensor = merge(Mean()).tensors()["w"]
    for found in (
        LazyTensor(tensor).to("cpu"),
        LazyTensor(tensor)[2:5].to(device=CPU, dtype=torch.float64).float(),
        torch.empty(12, 1 << 16).copy_(LazyTensor(tensor)),
        torch.empty(1 << 16, 12).copy_(LazyTensor(tensor).T),
    ):
        assert type(found) is Tensor
        part = {3: expected[2:5], 1 << 16: expected.T}.get(len(found), expected)
        assert torch.equal(found, part)


def test_the_next_part_is_read_while_the_last_is_merged(
    checkpoint: Callable[..., str], recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [checkpoint({"w": torch.randn(40, 50) + i}) for i in range(2)]
    started, seen = [threading.Event() for _ in range(4)], []
    into = StoredTensor.read_into

    def noting(self: StoredTensor, target: Tensor, region: Region) -> None:
        started[region.bounds[0][0] // 10].set()
        into(self, target, region)

    monkeypatch.setattr(StoredTensor, "read_into", noting)

    @dataclasses.dataclass(frozen=True)
    class Patient(Mean):
        """Merges a part when the next one is being read."""

        def __call__(self, slot: Slot) -> Tensor:
            ahead = min(slot.box.bounds[0][0] // 10 + 1, 3)
            seen.append(started[ahead].wait(timeout=20))
            return super().__call__(slot)

    plan = open_merge(recipe("average_merging", None, paths)).plan
    tensors = {n: dataclasses.replace(t, kernel=Patient()) for n, t in plan.tensors.items()}
    merge = Merge(dataclasses.replace(plan, tensors=tensors))
    merge.places[CPU] = Place(CPU, 500, by_threads=False)
    found = merge.tensors()["w"][...]
    assert seen == [True] * 4
    assert torch.equal(
        found, open_merge(recipe("average_merging", None, paths)).tensors()["w"][...]
    )


def test_nothing_is_read_any_more_after_an_error(
    checkpoint: Callable[..., str], recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = open_merge(
        recipe("average_merging", None, [checkpoint({"w": torch.zeros(80, 50)})])
    ).plan
    carrier, stored = Carrier(CPU), plan.tensors["w"].stored
    reading = threading.Semaphore(0)
    into = StoredTensor.read_into

    def slowly(self: StoredTensor, target: Tensor, region: Region) -> None:
        reading.release()
        into(self, target, region)

    monkeypatch.setattr(StoredTensor, "read_into", slowly)
    each = carrier.bring_each(stored, Region.whole((80, 50)).blocks(500))
    next(each)
    each.close()
    n_read = reading._value
    assert n_read <= 2
    assert torch.equal(carrier.bring(stored, Region.whole((80, 50)))[0], torch.zeros(80, 50))
    assert reading._value == n_read + 1


@dataclasses.dataclass(frozen=True)
class Largest:
    """Divides the mean by the largest weight of the model, found where the parts are read to."""

    most: int = 1 << 60
    as_dataclass: bool = True
    granularity = ELEMENT

    def prepare(self, sources: Sources) -> Kernel:
        def look(block: Slot) -> Tensor:
            here = threading.current_thread() is threading.main_thread()
            if here and block.shape.numel() > self.most:
                raise torch.OutOfMemoryError("no room")
            (seen if here else seen_by_threads).append(block.shape.numel())
            return block.stacked().abs().max()

        largest = torch.stack([one for w in sources.slots() for one in w.map_blocks(look)]).max()
        divided = Divided(largest)
        return divided if self.as_dataclass else lambda slot: divided(slot)

    def __call__(self, slot: Slot) -> Tensor:
        raise AssertionError("it is prepared first")


@dataclasses.dataclass(frozen=True)
class Divided:
    """The mean, divided by a number."""

    largest: Tensor
    granularity = ELEMENT

    def __call__(self, slot: Slot) -> Tensor:
        return slot.stacked().mean(0) / self.largest


seen: list[int] = []
seen_by_threads: list[int] = []


@pytest.mark.parametrize(
    ("kernel", "there", "said"),
    [
        (Largest(), True, ""),
        (Largest(most=1 << 18), True, ""),
        (Largest(most=1 << 10), False, "Largest merges on the CPU what goes to cpu: no room"),
        (Largest(as_dataclass=False), False, "function, which it prepared, is no dataclass"),
    ],
)
def test_a_method_prepares_where_the_merge_goes(
    kernel: Largest,
    there: bool,
    said: str,
    merge: Callable[[Any], Merge],
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen.clear()
    seen_by_threads.clear()
    found = merge(kernel)
    tensors = found.tensors()
    merged = {name: tensor[...] for name, tensor in tensors.items()}
    assert bool(seen_by_threads) is not there
    assert said in caplog.text
    assert bool(said) is bool(caplog.text)
    read = [
        found.reader(t).read(Region.whole(t.shape)).stacked() for t in found.plan.tensors.values()
    ]
    largest = max(float(both.abs().max()) for both in read)
    for name, both in zip(tensors, read, strict=True):
        assert torch.equal(merged[name], both.mean(0) / torch.tensor(largest))


def test_what_was_prepared_is_brought_back() -> None:
    inner = Divided(torch.ones(2, device="meta"))
    held = dataclasses.make_dataclass("Held", ["inner", "by_name", "each", "rest"], frozen=True)
    kernel = held(inner, {"a": inner.largest}, (inner, 3), "as it is")
    with pytest.raises(NotImplementedError, match="meta"):  # what is not here cannot come
        brought_back(kernel)
    kernel = held(Divided(torch.ones(2)), {"a": torch.zeros(1)}, (Divided(torch.ones(3)), 3), None)
    found = brought_back(kernel)
    assert found.by_name == kernel.by_name
    assert found.each[0].largest.device == CPU
    assert brought_back(None) is None
