"""A merged tensor for loaders that cut a checkpoint's tensors before they copy them.

Serving engines take views of every stored tensor down to what this rank holds, then copy that into
their parameter. Here views stay symbolic, and a copy merges what is left: with tensor parallelism
each rank reads and merges its share. Any other use merges first, so every use is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from merge_plugins.engine import MergedTensor

aten = torch.ops.aten


class Origin:
    """What a lazy tensor and all its views look at: merged piece by piece, or once for all."""

    def __init__(self, tensor: MergedTensor) -> None:
        self.name = tensor.name
        self.tensor: MergedTensor | Tensor = tensor

    def merge(self) -> None:
        """Become an ordinary tensor, which can be written to."""
        if not isinstance(self.tensor, Tensor):
            self.tensor = self.tensor[...]


class LazyTensor(Tensor):
    """What is left of a `MergedTensor` after views of it: a box, whose dimensions may be reordered.

    ``lazy[a:b]``, `narrow`, `select`, `unsqueeze`, `transpose` and their like return another one;
    `torch.Tensor.copy_` from it and every other operation merge the box, on the CPU. Writing to it
    merges all of the source, once: it and all its views then share an ordinary tensor's memory.
    """

    origin: Origin
    bounds: tuple[tuple[int, int], ...]
    """The box: a half-open range of each dimension of the source."""
    dims: tuple[int | None, ...]
    """Which dimension of the source each of this tensor's is; None: one that was put in."""

    @staticmethod
    def __new__(
        cls,
        of: MergedTensor | Origin,
        bounds: Sequence[tuple[int, int]] | None = None,
        dims: Sequence[int | None] | None = None,
    ) -> LazyTensor:
        """Return all of a merged tensor, or a view of it."""
        origin = of if isinstance(of, Origin) else Origin(of)
        tensor = origin.tensor
        bounds = tuple((0, size) for size in tensor.shape) if bounds is None else tuple(bounds)
        dims = tuple(range(len(bounds))) if dims is None else tuple(dims)
        sizes = [1 if dim is None else bounds[dim][1] - bounds[dim][0] for dim in dims]
        lazy: LazyTensor = Tensor._make_wrapper_subclass(
            cls, sizes, dtype=tensor.dtype, device=tensor.device
        )
        lazy.origin, lazy.bounds, lazy.dims = origin, bounds, dims
        return lazy

    # attributes and methods of Tensor go straight to the operators below
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def merged(self) -> Tensor:
        """Merge the box, and nothing else: an ordinary tensor of this one's shape."""
        box = self.origin.tensor[tuple(slice(*bounds) for bounds in self.bounds)]
        kept = [dim for dim in self.dims if dim is not None]
        dropped = [dim for dim in range(box.ndim) if dim not in kept]  # of size 1
        return box.permute(*kept, *dropped).reshape(self.shape)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LazyTensor({self.origin.name}, {list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> Any:
        """Stay symbolic where the operation is a view, else merge what is asked of."""
        kwargs = kwargs or {}
        view = VIEWS.get(func)
        if view is not None and isinstance(args[0], cls):
            found = view(*args, **kwargs)
            if found is not None:
                return found
        if func is aten.copy_.default and args[0].is_meta:
            return args[0]  # vLLM counts elements like this before it reloads: nothing to merge
        written = func._schema.is_mutable and isinstance(args[0], cls)
        if written:
            args[0].origin.merge()
        merged, named = tree_map_only(cls, cls.merged, (args, kwargs))
        result = func(*merged, **named)
        return args[0] if written else result

    def _cut(self, dim: int, start: int, stop: int) -> Tensor:
        """Cut one dimension, counted from 0."""
        source_dim = self.dims[dim]
        if source_dim is None:  # of size 1
            sizes = [*self.shape[:dim], 0, *self.shape[dim + 1 :]]
            whole = (start, stop) == (0, 1)
            return self._seen(self.dims) if whole else torch.empty(sizes, dtype=self.dtype)
        bounds, first = list(self.bounds), self.bounds[source_dim][0]
        bounds[source_dim] = (first + start, first + max(start, stop))
        return LazyTensor(self.origin, bounds, self.dims)

    def _seen(self, dims: Sequence[int | None]) -> LazyTensor:
        """The same box with its dimensions reordered, inserted or left out where of size 1."""
        return LazyTensor(self.origin, self.bounds, dims)


def _same(lazy: LazyTensor, **_: Any) -> LazyTensor:
    return lazy._seen(lazy.dims)


def _reshaped(lazy: LazyTensor, size: Sequence[int]) -> LazyTensor | None:
    return _same(lazy) if tuple(size) == tuple(lazy.shape) else None


def _sliced(
    lazy: LazyTensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor | None:
    if step != 1:
        return None
    dim %= lazy.ndim
    first, last, _ = slice(start, end).indices(lazy.shape[dim])
    return lazy._cut(dim, first, last)


def _selected(lazy: LazyTensor, dim: int, index: int) -> LazyTensor:
    dim, index = dim % lazy.ndim, index % lazy.shape[dim]
    row = cast(LazyTensor, lazy._cut(dim, index, index + 1))
    return row._seen([*lazy.dims[:dim], *lazy.dims[dim + 1 :]])


def _unbound(lazy: LazyTensor, dim: int = 0) -> list[LazyTensor]:
    return [_selected(lazy, dim, index) for index in range(lazy.shape[dim])]


def _split(lazy: LazyTensor, sizes: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    dim %= lazy.ndim
    if isinstance(sizes, int):
        left = lazy.shape[dim]
        sizes = [min(sizes, left - at) for at in range(0, left, sizes)] if left else [0]
    stops = list(itertools.accumulate(sizes))
    pairs = zip(stops, sizes, strict=True)
    return [lazy._cut(dim, stop - size, stop) for stop, size in pairs]


def _unsqueezed(lazy: LazyTensor, dim: int) -> LazyTensor:
    dim %= lazy.ndim + 1
    return lazy._seen([*lazy.dims[:dim], None, *lazy.dims[dim:]])


def _squeezed(lazy: LazyTensor, dim: int) -> LazyTensor:
    return _selected(lazy, dim, 0) if lazy.shape[dim] == 1 else _same(lazy)


def _transposed(lazy: LazyTensor, first: int = 0, second: int = 1) -> LazyTensor:
    dims = list(lazy.dims)
    if dims:
        dims[first], dims[second] = dims[second], dims[first]
    return lazy._seen(dims)


def _turned(lazy: LazyTensor) -> LazyTensor:
    return lazy._seen(lazy.dims[::-1])


def _permuted(lazy: LazyTensor, order: Sequence[int]) -> LazyTensor:
    return lazy._seen([lazy.dims[dim] for dim in order])


VIEWS: dict[Any, Callable[..., Any]] = {
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.permute.default: _permuted,
    aten.select.int: _selected,
    aten.slice.Tensor: _sliced,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.squeeze.dim: _squeezed,
    aten.t.default: _turned,
    aten.transpose.int: _transposed,
    aten.unbind.int: _unbound,
    aten.unsqueeze.default: _unsqueezed,
    aten.view.default: _reshaped,
}
"""What each view operator makes of a lazy tensor; None where only the merged one has it."""
