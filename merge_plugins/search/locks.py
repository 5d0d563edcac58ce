"""Locks on files that the system frees when their process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merge_plugins.errors import MergeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for the lock on a file, which is created, and hold it for the block."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            _lock(handle, file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def try_lock(file: Path) -> int | None:
    """Lock a file that exists; return its handle, to be closed, or None if it is another's."""
    handle = os.open(file, os.O_RDWR)
    if fcntl is not None:
        try:
            _lock(handle, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
    return handle


def _lock(handle: int, file: Path, how: int) -> None:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError as exc:
        os.close(handle)
        raise MergeError(
            f"{file}: its file system has no locks ({exc.strerror}), so no two processes can share "
            "this folder; use a folder on another one, or --storage"
        ) from exc
