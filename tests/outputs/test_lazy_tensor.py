"""A lazy tensor is any view of the merged one, and merges no more than that view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins.outputs.lazy_tensor import LazyTensor

Write = Callable[..., str]
Merged = Callable[..., dict[str, Any]]
View = Callable[[Tensor], Any]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Watched:
    """A merged tensor of which every merged box is noted."""

    def __init__(self, tensor: Any) -> None:
        self._tensor, self.boxes = tensor, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def on(self, device: torch.device, index: Any) -> Tensor:
        found: Tensor = self._tensor.on(device, index)
        self.boxes.append(found.shape)
        return found


@pytest.fixture(scope="module")
def means(checkpoint: Write, merged: Merged) -> dict[str, Any]:
    """Averages of weights of up to three dimensions."""
    shapes = {"scalar": (), "vector": (7,), "matrix": (6, 9), "experts": (4, 6, 5)}
    models = [
        checkpoint({name: numbers(*shape, seed=i) for name, shape in shapes.items()})
        for i in range(2)
    ]
    return merged("average_merging", None, models, dtype="float32")


@st.composite
def views(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[View, tuple[int, ...]]:
    """A view that a loader might take of a tensor of that shape, and the shape of its result."""
    kinds = ["unsqueeze", "detach", "view"]
    kinds += ["narrow", "slice", "select", "transpose", "permute", "split", "chunk", "unbind"] * (
        len(shape) > 0
    )
    kind, n = draw(st.sampled_from(kinds)), len(shape)
    signed = st.integers(-n, n - 1) if n else st.nothing()
    view: View
    if kind == "unsqueeze":
        dim = draw(st.integers(-n - 1, n))
        view = lambda x: x.unsqueeze(dim)  # noqa: E731
    elif kind == "detach":
        view = lambda x: x.detach()  # noqa: E731
    elif kind == "view":
        view = lambda x: x.view(shape)  # noqa: E731
    elif kind in ("narrow", "slice"):
        dim = draw(signed)
        start = draw(st.integers(0, shape[dim]))
        length = draw(st.integers(0, shape[dim] - start))
        if kind == "narrow":
            view = lambda x: x.narrow(dim, start, length)  # noqa: E731
        else:
            at: list[Any] = [slice(None)] * n
            at[dim] = slice(start, start + length)
            view = lambda x: x[tuple(at)]  # noqa: E731
    elif kind == "transpose":
        a, b = draw(signed), draw(signed)
        view = lambda x: x.transpose(a, b)  # noqa: E731
    elif kind == "permute":
        order = draw(st.permutations(range(n)))
        view = lambda x: x.permute(order)  # noqa: E731
    else:
        dim = draw(signed)
        size = shape[dim]
        if size == 0:
            return (lambda x: x), shape
        which = draw(st.integers(0, size - 1))
        if kind == "select":
            view = lambda x: x.select(dim, which)  # noqa: E731
        elif kind == "unbind":
            view = lambda x: x.unbind(dim)[which]  # noqa: E731
        elif kind == "split":
            sizes = [which, size - which]
            view = lambda x: x.split(sizes, dim)[1]  # noqa: E731
        else:
            view = lambda x: x.chunk(2, dim)[-1]  # noqa: E731
    return view, tuple(view(torch.empty(shape)).shape)


@given(data=st.data(), name=st.sampled_from(["scalar", "vector", "matrix", "experts"]))
def test_views_of_it_are_views_of_the_merged_tensor(
    data: st.DataObject, name: str, means: dict[str, Any]
) -> None:
    expected, watched = means[name][...], Watched(means[name])
    lazy: Any = LazyTensor(watched)
    for _ in range(data.draw(st.integers(0, 5))):
        view, _ = data.draw(views(tuple(expected.shape)))
        expected, lazy = view(expected), view(lazy)
        assert isinstance(lazy, LazyTensor) or not expected.numel()
        assert lazy.shape == expected.shape
    assert watched.boxes == []
    target = torch.full(expected.shape, torch.nan)
    target.copy_(lazy)
    assert torch.equal(target, expected)
    assert sum(shape.numel() for shape in watched.boxes) == expected.numel()


def test_a_rank_merges_what_it_holds(means: dict[str, Any]) -> None:
    """Rows of one weight and columns of another, as column- and row-parallel layers take them."""
    for dim in (0, 1):
        whole, watched = means["matrix"][...], Watched(means["matrix"])
        size = whole.shape[dim] // 3
        shards = []
        for rank in range(3):
            parameter = torch.nn.Parameter(torch.empty_like(whole.narrow(dim, 0, size)))
            parameter.data.copy_(LazyTensor(watched).narrow(dim, rank * size, size))  # type: ignore[arg-type]
            shards.append(parameter.data)
        assert torch.equal(torch.cat(shards, dim), whole)
        assert [shape.numel() for shape in watched.boxes] == [whole.numel() // 3] * 3


def test_what_is_no_view_merges_first(means: dict[str, Any]) -> None:
    whole = means["matrix"][...]
    lazy: Any = LazyTensor(means["matrix"])
    assert torch.equal(lazy + 1, whole + 1)
    assert torch.equal(lazy[::2], whole[::2])
    assert torch.equal(lazy.reshape(-1), whole.reshape(-1))
    assert torch.equal(lazy.t().contiguous(), whole.t())
    assert torch.equal(torch.cat([lazy, lazy]), torch.cat([whole, whole]))
    assert torch.equal(lazy.to(torch.bfloat16), whole.to(torch.bfloat16))
    assert lazy.float().sum().item() == whole.sum().item()


def test_it_is_written_to_like_any_tensor(means: dict[str, Any]) -> None:
    """Ranks but the first zero a bias that all of them add."""
    whole = means["matrix"][...]
    lazy: Any = LazyTensor(means["matrix"])
    for tensor in (whole, lazy):
        half, turned = tensor[:3], tensor.t()
        assert half.zero_() is half
        half[0] = 1.0
        turned[2:4].unsqueeze(0).mul_(5)
        half += 1
    assert torch.equal(lazy + 0, whole)
    assert torch.equal(lazy[1:].t() + 0, whole[1:].t())
    assert (means["matrix"][:3] != 1).all(), "the merge itself stays as it is"


def test_it_says_what_it_is_without_merging(means: dict[str, Any]) -> None:
    watched = Watched(means["experts"])
    lazy: Any = LazyTensor(watched)
    assert (lazy.shape, lazy.dtype, lazy.device.type) == ((4, 6, 5), torch.float32, "cpu")
    assert (lazy.ndim, lazy.numel(), lazy.is_floating_point()) == (3, 120, True)
    assert repr(lazy[1]) == "LazyTensor(experts, [6, 5], torch.float32)"
    meta = torch.empty(4, 6, 5, device="meta")
    assert meta.copy_(lazy) is meta
    assert watched.boxes == []
