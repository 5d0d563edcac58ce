"""Locks on files that the system frees when their process ends, however it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merge_plugins.errors import MergeError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None  # type: ignore[assignment]

BEHIND = 1 << 30
"""Where the one byte lies that is locked on Windows, which lets nobody read what is locked."""
PAUSE = 0.02
"""Seconds between two tries on Windows, whose own wait gives up after ten seconds."""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for the lock on a file, which is created, and hold it for the block."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(handle, file, wait=True)
        yield
    finally:
        os.close(handle)


def try_lock(file: Path) -> int | None:
    """Lock a file that exists; return its handle, to be closed, or None if it is another's."""
    handle = os.open(file, os.O_RDWR)
    try:
        _lock(handle, file, wait=False)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _lock(handle: int, file: Path, *, wait: bool) -> None:
    try:
        if fcntl is None:
            _lock_on_windows(handle, wait)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as exc:
        os.close(handle)
        raise MergeError(
            f"{file}: its file system has no locks ({exc.strerror}), so no two processes can share "
            "this folder; use a folder on another one, or --storage"
        ) from exc


def _lock_on_windows(handle: int, wait: bool) -> None:
    while True:
        os.lseek(handle, BEHIND, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
            return
        except PermissionError as exc:
            if not wait:
                raise BlockingIOError(*exc.args) from exc
        time.sleep(PAUSE)
