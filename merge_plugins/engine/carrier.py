"""Bring regions of stored weights to a device while it still merges the last ones."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from merge_plugins.api import Region
from merge_plugins.engine.there import There
from merge_plugins.parallel import parallel
from merge_plugins.weights import SourceTensor, StoredTensor, signature
from merge_plugins.weights.resident import resident_on
from merge_plugins.weights.stored import PART

BUFFER = 64 << 20
"""Bytes of one buffer of page-locked memory."""
BUFFERS = 3
"""Buffers of one device, and threads that have them filled: some are on their way meanwhile."""
IN_FLIGHT = 2
"""Weights on one device at a time: one is merged while the next is read."""


class Carrier:
    """Copies regions of weights to one device: read by every core, sent on a stream of its own.

    Devices whose module in torch has no streams are sent to without them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = torch.get_device_module(device)
        has_streams = device.type != "cpu" and hasattr(self._module, "Stream")
        self._stream: Any = self._module.Stream(device) if has_streams else None
        self._buffers: SimpleQueue[_Buffer | None] = SimpleQueue()
        for _ in range(BUFFERS):
            self._buffers.put(None)  # made when first needed
        self._readers = ThreadPoolExecutor(BUFFERS, "carry")
        self._ahead = ThreadPoolExecutor(1, "carry-ahead")
        self._merging = threading.Lock()
        self.in_flight = threading.Semaphore(IN_FLIGHT)
        """Held while a weight is on the device."""

    @contextmanager
    def merging(self) -> Iterator[None]:
        """Merge here, one weight at a time; tensors that a kernel makes are made on the device."""
        with self._merging, There(self.device):
            yield

    def bring(self, sources: Sequence[SourceTensor], region: Region) -> list[Tensor]:
        """Copy a region of some weights to the device: [*region.sizes], as they are read.

        Of a weight that stays there it is a view. Copies may still be under way, but what uses them
        on the current stream waits for them. Requires the sources to be held.
        """
        return self._arrived(self._sent(sources, region))

    def bring_each(
        self, sources: Sequence[SourceTensor], regions: Iterable[Region]
    ) -> Generator[list[Tensor], None, None]:
        """Bring regions of some weights in turn, each while the caller works on the last."""
        coming: deque[Future[list[Tensor]]] = deque()
        try:
            for region in regions:
                coming.append(self._ahead.submit(self._sent, sources, region))
                if len(coming) > 1:
                    yield self._arrived(coming.popleft().result())
            while coming:
                yield self._arrived(coming.popleft().result())
        finally:
            for future in coming:  # the caller failed: nothing is read any more when it goes on
                if not future.cancel():
                    future.exception()

    def _sent(self, sources: Sequence[SourceTensor], region: Region) -> list[Tensor]:
        """Have copies of a region on their way."""
        if not region.numel:
            return [self._empty(region, source) for source in sources]
        return list(self._readers.map(functools.partial(self._bring, region), sources))

    def _arrived(self, brought: list[Tensor]) -> list[Tensor]:
        """Make what the calling thread does next on the device wait for copies to arrive."""
        if self._stream is not None:
            current = self._module.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in brought:
                tensor.record_stream(current)
        return brought

    def stays(self, source: SourceTensor) -> bool:
        """Whether a weight is kept on the device, once it has been brought there."""
        resident = resident_on(self.device)
        return resident is not None and resident.expects(signature(source))

    def _bring(self, region: Region, source: SourceTensor) -> Tensor:
        resident = resident_on(self.device)
        if resident is not None:
            copy = functools.partial(self._copy, Region.whole(source.shape), source)
            whole = resident.keep(signature(source), copy)
            if whole is not None:
                return region.of(whole)
        return self._copy(region, source)

    def _copy(self, region: Region, source: SourceTensor) -> Tensor:
        with self._on_stream():
            brought = self._empty(region, source)
        for chunk in region.blocks(BUFFER // source.read_as.itemsize):
            self._send(source, chunk, brought[chunk.within(region)])
        return brought

    def _send(self, source: SourceTensor, chunk: Region, target: Tensor) -> None:
        buffer = self._buffers.get() or _Buffer(self._module, pinned=self._stream is not None)
        try:
            staged = buffer.ready(chunk, source.read_as)

            def read(part: Region) -> None:
                into = staged[part.within(chunk)]
                if isinstance(source, StoredTensor):
                    source.read_into(into, part)
                    return
                into.copy_(source.read(part))
                if part.span is not None:
                    source.release(*part.span)

            parallel(read, chunk.blocks(PART))
            with self._on_stream():
                target.copy_(staged, non_blocking=self._stream is not None)
            buffer.leaves(self._stream)
        finally:
            self._buffers.put(buffer)

    def _empty(self, region: Region, source: SourceTensor) -> Tensor:
        return torch.empty(region.sizes, dtype=source.read_as, device=self.device)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else self._module.stream(self._stream)


class _Buffer:
    """Memory of the CPU that a device copies from."""

    def __init__(self, module: Any, *, pinned: bool) -> None:
        self._bytes = torch.empty(BUFFER, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self._sent: Any = module.Event() if pinned else None

    def ready(self, region: Region, dtype: torch.dtype) -> Tensor:
        """Shape it like a region, once what was in it has been sent."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._bytes[: region.numel * dtype.itemsize].view(dtype).view(region.sizes)

    def leaves(self, stream: Any) -> None:
        """Mark the point in a stream from which it may be filled again."""
        if self._sent is not None:
            self._sent.record(stream)


@functools.cache
def indexed(device: torch.device) -> torch.device:
    """Name a device by its number too: ``cuda`` is the current one."""
    return device if device.type == "cpu" else torch.empty(0, device=device).device


_carriers: dict[torch.device, Carrier] = {}
_making = threading.Lock()


def carrier_to(device: torch.device) -> Carrier:
    """Return the one carrier to a device."""
    with _making:
        if device not in _carriers:
            _carriers[device] = Carrier(device)
        return _carriers[device]
