"""Merge only the part of a tensor that a loader copies, on the device that it copies to.

Loaders take views of every stored tensor down to their rank's share, then move that to a device or
copy it into their parameter. Views of a `LazyTensor` stay symbolic, and such a copy merges the box
they select: with tensor parallelism each rank reads and merges its share, on its device. Every
other operation merges first, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from merge_plugins.engine import MergedTensor
from merge_plugins.weights.views import VIEWS

aten = torch.ops.aten


class Origin:
    """Share one merged tensor among a lazy tensor and its views: still lazy, or in memory."""

    def __init__(self, tensor: MergedTensor) -> None:
        self.name = tensor.name
        self.tensor: MergedTensor | Tensor = tensor

    def box(self, index: tuple[slice, ...], device: torch.device) -> Tensor:
        """Merge a box, or cut it from memory, on a device."""
        tensor = self.tensor
        return tensor[index].to(device) if isinstance(tensor, Tensor) else tensor.on(device, index)

    def merge(self) -> None:
        """Merge all of it into an ordinary tensor, which can be written to."""
        if not isinstance(self.tensor, Tensor):
            self.tensor = self.tensor[...]


class LazyTensor(Tensor):
    """View a box of a `MergedTensor` lazily; dimensions may be reordered.

    ``lazy[a:b]``, `narrow`, `select`, `unsqueeze`, `transpose` and their like return another one;
    `to`, `torch.Tensor.copy_` from it and every other operation merge the box. Writing to it merges
    all of the origin, once: it and all its views then share an ordinary tensor's memory.
    """

    origin: Origin
    bounds: tuple[tuple[int, int], ...]
    """The box: a half-open range of each dimension of the origin."""
    dims: tuple[int | None, ...]
    """Dimension of the origin that each of this tensor's is; None for an inserted one."""

    @staticmethod
    def __new__(
        cls,
        of: MergedTensor | Origin,
        bounds: Sequence[tuple[int, int]] | None = None,
        dims: Sequence[int | None] | None = None,
    ) -> LazyTensor:
        """Wrap all of a merged tensor, or a view of it."""
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

    def merged(self, device: torch.device | None = None) -> Tensor:
        """Merge the box into an ordinary tensor of the same shape, on a device (default: CPU)."""
        index = tuple(slice(*bounds) for bounds in self.bounds)
        box = self.origin.box(index, device or self.device)
        kept = [dim for dim in self.dims if dim is not None]
        dropped = [dim for dim in range(box.ndim) if dim not in kept]  # of size 1
        return box.permute([*kept, *dropped]).reshape(self.shape)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Merge the box on the device named, if any, and convert like `torch.Tensor.to`."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        return self.merged(device).to(*args, **kwargs)

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
        """Return a lazy view if the operation is a view, else merge its arguments and run it."""
        kwargs = kwargs or {}
        view = VIEWS.get(func)
        if view is not None and isinstance(args[0], cls):
            viewed = view(*args, **kwargs)
            if viewed is not None:
                return viewed
        if func is aten.copy_.default and args[0].is_meta:
            return args[0]  # vLLM counts elements like this before it reloads: nothing to merge
        written = func._schema.is_mutable and isinstance(args[0], cls)
        if written:
            args[0].origin.merge()
        copies = func in (aten.copy_.default, aten._to_copy.default)
        target = (kwargs.get("device") or args[0].device) if copies else None
        merged, named = tree_map_only(cls, lambda lazy: lazy.merged(target), (args, kwargs))
        result = func(*merged, **named)
        return args[0] if written else result

    def cut(self, dim: int, start: int, stop: int) -> Tensor:
        """Slice one dimension, counted from 0."""
        origin_dim = self.dims[dim]
        if origin_dim is None:  # of size 1
            sizes = [*self.shape[:dim], 0, *self.shape[dim + 1 :]]
            whole = (start, stop) == (0, 1)
            return self._with_dims(self.dims) if whole else torch.empty(sizes, dtype=self.dtype)
        bounds, first = list(self.bounds), self.bounds[origin_dim][0]
        bounds[origin_dim] = (first + start, first + max(start, stop))
        return LazyTensor(self.origin, bounds, self.dims)

    def ordered(self, order: Sequence[int | None]) -> LazyTensor:
        """View the box with dimensions reordered; None inserts one of size 1."""
        return self._with_dims([None if dim is None else self.dims[dim] for dim in order])

    def _with_dims(self, dims: Sequence[int | None]) -> LazyTensor:
        """View the box with dimensions reordered, or ones of size 1 inserted or removed."""
        return LazyTensor(self.origin, self.bounds, dims)
