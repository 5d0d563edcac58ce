"""Weights of models, not read yet; those computed from others each time they are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from merge_plugins.api import LowRank, Region
from merge_plugins.errors import CheckpointError
from merge_plugins.parallel import BLOCK, block_size, parallel


class SourceTensor(Protocol):
    """One weight of one model, not read yet: stored, or computed each time it is read."""

    @property
    def name(self) -> str:
        """Checkpoint name."""

    @property
    def file(self) -> Path:
        """Where it, or most of it, is stored: for messages."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight as stored."""

    @property
    def read_as(self) -> torch.dtype:
        """Of the weight as read; wider if it is computed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole weight."""

    def view(self) -> Tensor:
        """Return the whole weight. Never from inside `blocks.parallel`."""

    def read(self, region: Region) -> Tensor:
        """Return a box of the weight, with the same bits whatever the box. After `hold`."""

    def hold(self) -> None:
        """Make `read` possible, also from inside `blocks.parallel`, until as many `forget`."""

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Hand the pages of elements ``[start, stop)`` back; a later touch reads them again."""

    def forget(self) -> None:
        """Drop what was kept in memory since `hold`."""


def refuse_damage(tensor: SourceTensor) -> None:
    """Raise `CheckpointError` if a weight, which is held, has NaN or infinity: file and place."""
    for block in Region.whole(tensor.shape).blocks(BLOCK):
        bad = torch.isfinite(tensor.read(block)).logical_not_()
        if bad.any():
            at = block.index().view(-1)[bad.view(-1).to(torch.uint8).argmax()]
            first = [int(i) for i in torch.unravel_index(at, tensor.shape)]
            raise CheckpointError(
                f"{tensor.file}: {tensor.name} holds NaN or infinity, first at {first}. "
                "Repair or leave out this model."
            )


@contextmanager
def held(tensors: Iterable[SourceTensor]) -> Iterator[None]:
    """Hold tensors while the body runs."""
    with ExitStack() as stack:
        for tensor in tensors:
            tensor.hold()
            stack.callback(tensor.forget)
        yield


@dataclass(eq=False)
class ComputedTensor:
    """A `SourceTensor` made of others, by ``compute`` or else by ``whole``.

    All of it is kept only between the first `view` and the last `forget`, for methods that measure
    a weight or take it whole; otherwise only the boxes being read exist.
    """

    name: str
    file: Path
    dtype: torch.dtype
    """Of the model as it would be stored; decides what a merge of it is rounded to."""
    shape: tuple[int, ...]
    inputs: tuple[SourceTensor, ...]
    compute: Callable[[Region], Tensor] | None = None
    """One box of it; the bits of an element do not depend on the box."""
    whole: Callable[[], Tensor] | None = None
    """All of it, where it cannot be computed box by box."""
    ready: Callable[[], object] = field(default=lambda: None)
    """What ``compute`` needs first and cannot do inside `blocks.parallel`."""
    factors: LowRank | None = None
    """What was added to the input, where that is low-rank."""
    read_as: torch.dtype = torch.float32
    """Dtype of what is read."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._holds = 0
        self._kept: Tensor | None = None

    def hold(self) -> None:
        """See `SourceTensor.hold`."""
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
        """See `SourceTensor.forget`."""
        with self._lock:
            self._let_go()
            for tensor in self.inputs:
                tensor.forget()

    def _let_go(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            self._kept = None

    def view(self) -> Tensor:
        """See `SourceTensor.view`."""
        with self._lock:
            if self._kept is not None:
                return self._kept
            with held(self.inputs):
                self.ready()
                made = self._by_blocks() if self.whole is None else self.whole()
            self._kept = made if self._holds else None
            return made

    def read(self, region: Region) -> Tensor:
        """See `SourceTensor.read`."""
        kept = self._kept
        if kept is not None or self.compute is None:
            return region.of(self.view() if kept is None else kept)
        return self.compute(region)

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """See `SourceTensor.release`."""
        for tensor in self.inputs:
            if tensor.shape == self.shape:
                tensor.release(start, stop)

    def _by_blocks(self) -> Tensor:
        whole = torch.empty(self.shape, dtype=self.read_as)

        def fill(region: Region) -> None:
            assert self.compute is not None
            region.of(whole).copy_(self.compute(region))

        region = Region.whole(self.shape)
        if region.numel:
            parallel(fill, region.blocks(block_size(1 + len(self.inputs))))
        return whole
