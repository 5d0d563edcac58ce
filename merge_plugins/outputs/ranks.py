"""Hand a merge's weights to the ranks of an engine, each of which reads and merges its share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from merge_plugins.engine import MergedTensor
from merge_plugins.outputs.lazy_tensor import LazyTensor, Origin
from merge_plugins.ranks import Ranks

CPU = torch.device("cpu")


def in_group(group: dist.ProcessGroup) -> Ranks | None:
    """Return this process among those of a group that sends objects; None if it is alone there."""
    size = dist.get_world_size(group)

    def gather(message: bytes) -> list[bytes]:
        found: list[bytes] = [b""] * size
        dist.all_gather_object(found, message, group=group)
        return found

    return Ranks(dist.get_rank(group), size, gather) if size > 1 else None


def lazily(
    tensors: Iterable[tuple[str, MergedTensor]],
    ranks: Ranks | None = None,
    *,
    device: torch.device = CPU,
    all_hold: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, LazyTensor]]:
    """Turn named weights into tensors that are merged as they are copied, onto a device.

    ``ranks``: all go through this in the same order, and measure together the weights of which each
    holds a share; ``all_hold``: whether that is so. A weight of which one rank holds all is
    measured by that rank, when it copies it.
    """
    try:
        for name, tensor in tensors:
            if ranks is None:
                yield name, LazyTensor(tensor)
                continue
            if all_hold(name):
                tensor.measure_with(ranks, device)
            yield name, LazyTensor(_Shared(tensor, ranks))
    finally:
        if ranks is not None:
            ranks.leave()


class _Shared(Origin):
    """A merged tensor of several ranks, which do not wait for one that could not merge it."""

    def __init__(self, tensor: MergedTensor, ranks: Ranks) -> None:
        super().__init__(tensor)
        self._ranks = ranks

    def box(self, index: tuple[slice, ...], device: torch.device) -> Tensor:
        """Merge a box, or cut it from memory, on a device."""
        try:
            return super().box(index, device)
        except BaseException:
            self._ranks.leave()
            raise
