"""Run a function over the blocks of a weight: on every core, or in order on another device.

On the CPU, blocks fit the last-level cache, so elementwise kernels run at the speed of arithmetic
and their float32 temporaries never reach main memory. One pool serves the whole process: loaders
that ask for several tensors at once share it, and memory stays at a few blocks per thread. A GPU
queues what it is told, so there one thread tells it about larger blocks.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import get_num_threads, set_num_threads

from merge_plugins.memory import Aside, return_memory, set_aside, taken_back

BLOCK = 1 << 19
"""Elements per block, 2 MiB of float32, with up to three inputs. Smaller blocks fit a core's own
cache, but threads then wait for each other's Python (1.4 to 1.9 times slower at 2**17)."""
KEPT = 31 << 20
"""Bytes: temporaries up to this size are reused rather than returned to the system; below the 32 MB
that glibc allows. Twice as much may be free at the end of a heap before that is returned."""
DEVICE_BLOCK = 1 << 23
"""Elements per block on other devices: some 30 bytes each while a kernel runs, and enough work for
the device to keep busy while Python starts the next operation."""
MOST_WORKERS = 16
"""Most threads of the pool: with more, they wait for each other's Python."""

TRIM_EVERY = 256
"""Blocks between two returns of unused memory to the system. Temporaries cost page faults after
each; at 512 `karcher`, which keeps blocks, takes a fiftieth of the model more."""

_since_trim = 0
_pools: dict[int, Workers] = {}  # by process id: threads do not survive a fork
_alone: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()
S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class Workers(ThreadPoolExecutor):
    """The threads that merge blocks."""

    def __init__(self, size: int, start: Callable[[], None]) -> None:
        """Make so many; each calls ``start`` first."""
        super().__init__(size, "merge", start)
        self.size = size


def block_size(n_inputs: int, most: int = BLOCK) -> int:
    """Compute elements per block such that memory does not grow with the number of inputs."""
    return max(1, min(most, 3 * most // n_inputs))


def pool() -> Workers:
    """Return the process's pool; the first call makes it.

    Call it before other threads start that use torch: while it is made, new threads take the one
    thread of a worker for the number of the process.
    """
    pid = os.getpid()
    with _making:  # of several threads that ask for it first, one makes it
        if pid not in _pools:
            _pools[pid] = _new_pool()
        return _pools[pid]


def _new_pool() -> Workers:
    threads = get_num_threads()
    workers = min(threads, MOST_WORKERS)
    ready = threading.Barrier(workers + 1)
    # glibc returns large freed blocks to the system at once, so that each temporary costs page
    # faults, until a block of that size has been freed once: free one here.
    torch.empty(KEPT, dtype=torch.uint8)

    def start() -> None:
        get_num_threads()  # torch gives a thread the process's number at its first use: now
        set_num_threads(1)  # here and, as a side effect, for threads that start later
        ready.wait()

    made = Workers(workers, start)
    for _ in range(workers):
        made.submit(int)
    ready.wait()
    set_num_threads(threads)  # undoes the side effect; the workers keep their one thread
    return made


def parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Compute ``[function(item) for item in items]`` on every core.

    An exception, or Ctrl-C, cancels what has not started; of several that of the first item is
    raised. Never call it from ``function``. Small tensors come back as copies; see `set_aside`.
    """
    work = list(items)
    todo, results = deque(enumerate(work)), cast("list[R | Aside]", [None] * len(work))
    failed: dict[int, BaseException] = {}

    def drain() -> None:
        while todo:
            try:
                at, item = todo.popleft()
            except IndexError:  # another worker took the last
                return
            try:
                results[at] = set_aside(function(item))
            except BaseException as exc:
                failed[at] = exc
                todo.clear()
            _trim_at_times()

    workers = pool()  # also for one item: sums depend on how many threads torch uses
    # one call for each worker, not for each item: to hand an item over and wake up for its result
    # took half a millisecond, since each waits for the other's Python
    futures = [workers.submit(drain) for _ in range(min(workers.size, len(work)))]
    try:
        for future in futures:
            future.result()
    finally:
        todo.clear()
        for future in futures:
            future.cancel()
    if failed:
        try:
            raise failed[min(failed)]  # items start in order: none before it was left out
        finally:
            failed.clear()  # its traceback would keep it, and all that it holds
    return [taken_back(result) for result in results]


def _trim_at_times() -> None:
    global _since_trim
    _since_trim += 1
    if _since_trim >= TRIM_EVERY:  # not only at the end: results lie between temporaries
        _since_trim = 0
        return_memory()


def alone(function: Callable[[], R]) -> R:
    """Call ``function()`` in one shared thread, one call at a time; it may use every core.

    One thread, since each that multiplies matrices keeps a heap and buffers of its own, several
    times the size of its operands. Ctrl-C cancels calls that have not started. Never call it from
    ``function``.
    """
    threads = get_num_threads()

    def run() -> R:
        if get_num_threads() != threads:
            set_num_threads(threads)
        try:
            return function()
        finally:
            return_memory()

    thread = _alone.setdefault(os.getpid(), ThreadPoolExecutor(1, "merge-alone"))
    future = thread.submit(run)
    try:
        return future.result()
    finally:
        future.cancel()


def accelerator() -> torch.device | None:
    """Return the accelerator of this machine, the current one of several; None without any."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


@dataclass(frozen=True)
class Place:
    """Where the blocks of a weight are merged, how large they are, and by how many threads."""

    device: torch.device = torch.device("cpu")
    block: int = BLOCK
    """Elements per block, with up to three inputs."""
    by_threads: bool = True
    """Whether every core merges blocks of its own; else one thread merges them in order."""
    room: int = 0
    """Bytes of inputs that may stay there, mapped on the CPU, while a weight is measured and
    merged; methods may keep as much of it (`merge_plugins.api.Weight.has_room`)."""

    @classmethod
    def on(cls, device: torch.device) -> Place:
        """Return where weights that are already on a device are merged."""
        return CPU if device.type == "cpu" else cls(device, DEVICE_BLOCK, by_threads=False)

    def smaller(self) -> Place:
        """Return this place for a device with less memory than it was made for."""
        return replace(self, block=self.block // 4, room=self.room // 4)

    def block_size(self, n_inputs: int) -> int:
        """Compute elements per block such that memory does not grow with the number of inputs."""
        return block_size(n_inputs, self.block)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Compute ``[function(item) for item in items]``; see `parallel` for the CPU's rules."""
        return parallel(function, items) if self.by_threads else list(map(function, items))

    def through(
        self,
        walk: Callable[[Iterable[T]], Iterable[S]],
        function: Callable[[S], R],
        items: Iterable[T],
    ) -> list[R]:
        """Compute ``[function(found) for found in walk(items)]``, where ``walk`` reads them.

        On the CPU every core walks items of its own, one at a time; elsewhere one walk goes
        through all in order, so that it can read ahead.
        """
        if not self.by_threads:
            return list(map(function, walk(items)))

        def apply(item: T) -> R:
            [result] = map(function, walk([item]))
            return result

        return self.map(apply, items)

    def alone(self, function: Callable[[], R]) -> R:
        """Call a function that uses all of the place; see `alone` for the CPU's rules."""
        return alone(function) if self.by_threads else function()


CPU = Place()
