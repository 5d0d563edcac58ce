"""Define lazy weights, and compute some from others each time they are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from merge_plugins.api import LowRank, Region
from merge_plugins.parallel import block_size, parallel
from merge_plugins.weights.opened import OpenedFile
from merge_plugins.weights.stored import StoredTensor


class SourceTensor(Protocol):
    """Read one weight of one model on demand: stored, or computed at each read."""

    @property
    def name(self) -> str:
        """Checkpoint name."""

    @property
    def file(self) -> Path:
        """File that stores the weight or most of it, for messages."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored weight."""

    @property
    def read_as(self) -> torch.dtype:
        """Dtype of tensors that `read` and `view` return; wider if computed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole weight."""

    def view(self) -> Tensor:
        """Return the whole weight. Not allowed inside `parallel.parallel`."""

    def read(self, region: Region) -> Tensor:
        """Read a region. An element has the same bits in any region. Requires `hold`."""

    def hold(self) -> None:
        """Allow `read`, also inside `parallel.parallel`, until a matching `forget`."""

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Release the memory pages of elements ``[start, stop)``; they can be read again."""

    def forget(self) -> None:
        """End a `hold`; the last one frees the weight if it was kept in memory."""


def stored_inputs(tensor: SourceTensor) -> Iterator[SourceTensor]:
    """Iterate over the stored weights that a weight is computed from; a stored one is its own."""
    if isinstance(tensor, ComputedTensor):
        for each in tensor.inputs:
            yield from stored_inputs(each)
    else:
        yield tensor


def signature(tensor: SourceTensor) -> Hashable | None:
    """Return what is equal for weights of equal bits; None where that is not known.

    A file that has changed, and whatever is computed from it, has another signature.
    """
    if isinstance(tensor, StoredTensor):
        return tensor.signature
    if not isinstance(tensor, ComputedTensor) or tensor.how is None:
        return None
    inputs = tuple(map(signature, tensor.inputs))
    known = (tensor.how, tensor.dtype, tensor.read_as, tensor.shape, inputs)
    return None if None in inputs else known


def opened_files(tensors: Iterable[SourceTensor]) -> list[OpenedFile]:
    """List the files that weights are stored in or computed from, each once."""
    stored = (each for tensor in tensors for each in stored_inputs(tensor))
    return list(
        dict.fromkeys(
            each.opened for each in stored if isinstance(each, StoredTensor) and each.opened
        )
    )


@contextmanager
def held(tensors: Iterable[SourceTensor]) -> Iterator[None]:
    """Hold tensors until the end of the block."""
    with ExitStack() as stack:
        for tensor in tensors:
            tensor.hold()
            stack.callback(tensor.forget)
        yield


@dataclass(eq=False)
class ComputedTensor:
    """Compute a `SourceTensor` from others, by region with ``compute`` or else with ``whole``.

    The whole weight is in memory only from the first `view` to the last `forget`, for methods that
    measure it or take it whole; otherwise only the regions being read are.
    """

    name: str
    file: Path
    dtype: torch.dtype
    """Dtype the weight would be stored in; a merge of it is rounded to this dtype."""
    shape: tuple[int, ...]
    inputs: tuple[SourceTensor, ...]
    compute: Callable[[Region], Tensor] | None = None
    """Compute one region; the bits of an element must not depend on the region."""
    whole: Callable[[], Tensor] | None = None
    """Compute the whole weight, if it cannot be computed by region."""
    ready: Callable[[], object] = field(default=lambda: None)
    """Prepare ``compute``: work that is not allowed inside `parallel.parallel`."""
    factors: LowRank | None = None
    """Low-rank matrix that was added to the input, if the change is one."""
    read_as: torch.dtype = torch.float32
    """Dtype of tensors that `read` and `view` return."""
    how: Hashable | None = None
    """All that its bits depend on beside the inputs; None if that cannot be said."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._holds = 0
        self._kept: Tensor | None = None

    def hold(self) -> None:
        """Hold the inputs, and count; see `SourceTensor.hold`."""
        with self._lock, ExitStack() as undo:
            for tensor in self.inputs:
                tensor.hold()
                undo.callback(tensor.forget)
            self.ready()
            self._holds += 1
            undo.callback(self._let_go)
            if self.compute is None:
                self.view()
            undo.pop_all()

    def forget(self) -> None:
        """Release the inputs, and count; see `SourceTensor.forget`."""
        with self._lock:
            self._let_go()
            for tensor in self.inputs:
                tensor.forget()

    def _let_go(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            self._kept = None

    def view(self) -> Tensor:
        """Compute the whole weight, or return it if it is kept; see `SourceTensor.view`."""
        with self._lock:
            if self._kept is not None:
                return self._kept
            with held(self.inputs):
                self.ready()
                whole = self._by_blocks() if self.whole is None else self.whole()
            self._kept = whole if self._holds else None
            return whole

    def read(self, region: Region) -> Tensor:
        """Compute a region, or cut it from the weight if that is kept."""
        kept = self._kept
        if kept is not None or self.compute is None:
            return region.of(self.view() if kept is None else kept)
        return self.compute(region)

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Release pages of the inputs that have this weight's shape."""
        for tensor in self.inputs:
            if tensor.shape == self.shape:
                tensor.release(start, stop)

    def _by_blocks(self) -> Tensor:
        whole = torch.empty(self.shape, dtype=self.read_as, device="cpu")  # whatever the default is

        def fill(region: Region) -> None:
            assert self.compute is not None
            region.of(whole).copy_(self.compute(region))

        region = Region.whole(self.shape)
        if region.numel:
            parallel(fill, region.blocks(block_size(1 + len(self.inputs))))
        return whole
