"""Ranks that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from merge_plugins.ranks import Ranks

T = TypeVar("T")


def on_ranks(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """Run something on ranks that are threads; return what each returned, or raise its error."""
    meeting = threading.Barrier(size, timeout=60)
    messages: list[bytes] = [b""] * size

    def on_rank(rank: int) -> T:
        def gather(message: bytes) -> list[bytes]:
            messages[rank] = message
            meeting.wait()
            found = [*messages]
            meeting.wait()
            return found

        ranks = Ranks(rank, size, gather)
        try:
            return work(ranks)
        finally:
            ranks.leave()

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(on_rank, range(size)))
