"""Run a function over the blocks of a weight on every core, with bounded memory.

Blocks fit a core's cache, so elementwise kernels run at the speed of arithmetic and their float32
temporaries never reach main memory. One pool serves the whole process: loaders that ask for
several tensors at once share it, and memory stays "threads times a few blocks".
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

BLOCK = 1 << 17
"""Elements per block: 512 KiB of float32. Results do not depend on it."""
KEPT = (32 << 20) - 4096  # the most that counts
MOST_WORKERS = 16
"""Past this, threads wait for each other's Python rather than compute."""

T = TypeVar("T")
R = TypeVar("R")


@functools.cache
def _pool(pid: int) -> ThreadPoolExecutor:  # by process id: threads do not survive a fork
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    ready = threading.Barrier(workers + 1)
    # glibc returns freed memory at once until it has seen one large block freed. After this it
    # keeps some megabytes per thread, and temporaries of a block cost no page faults.
    torch.empty(KEPT, dtype=torch.uint8)

    def start() -> None:
        torch.get_num_threads()  # torch gives a thread the process's number at its first use: now
        torch.set_num_threads(1)  # here and, as a side effect, for threads that start later
        ready.wait()

    pool = ThreadPoolExecutor(workers, "merge", initializer=start)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)  # undoes the side effect; the workers keep their one thread
    return pool


def parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``[function(item) for item in items]``, computed on every core.

    The first exception, or Ctrl-C, cancels what has not started. Never call it from ``function``.
    """
    pool = _pool(os.getpid())  # also for one item: sums depend on how many threads torch uses
    futures = [pool.submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
