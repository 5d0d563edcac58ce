"""Open a weight file once for all its tensors, and refuse to read it when it has changed."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import IO, NamedTuple

from merge_plugins.errors import CheckpointError


class Stamp(NamedTuple):
    """What changes when a file is written to or replaced."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Take the stamp of a file's status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class OpenedFile:
    """A weight file, mapped: its tensors share the map, and the stamp it had when it was opened."""

    def __init__(self, path: Path, handle: IO[bytes]) -> None:
        self.path, self.stamp = path, Stamp.of(os.fstat(handle.fileno()))
        # Private and writable only so that torch can wrap it; nothing ever writes.
        self.map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        self._fd = os.dup(handle.fileno())
        weakref.finalize(self, os.close, self._fd)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill memory with the file's bytes from ``offset`` on, in two thirds of a map's time.

        Raises `CheckpointError` if the file ends before that; nothing here can kill the process.
        """
        if not hasattr(os, "preadv"):
            self.refuse_truncation()
            target[:] = memoryview(self.map)[offset : offset + len(target)]
            return
        done = 0
        while done < len(target):
            n_bytes = os.preadv(self._fd, [target[done:]], offset + done)
            if not n_bytes:
                raise changed(self.path)
            done += n_bytes

    def refuse_changes(self) -> None:
        """Raise `CheckpointError` unless the path still leads to the file as it was opened.

        Call it whenever the path is opened again, and after the last read.
        """
        try:
            now = Stamp.of(self.path.stat())
        except OSError as exc:
            raise changed(self.path) from exc
        if now != self.stamp:
            raise changed(self.path)

    def refuse_truncation(self) -> None:
        """Raise `CheckpointError` if the file no longer has the size it was opened with.

        Reading a map beyond the end of its file kills the process (SIGBUS), so this is called
        before every block. It costs one system call. A file cut off between this check and the
        reading of the block, within milliseconds, still kills.
        """
        if self.map.size() != self.stamp.size:
            raise changed(self.path)


def changed(path: Path) -> CheckpointError:
    """Build the error for a file that was written to, replaced or removed while it was in use."""
    return CheckpointError(
        f"{path} changed while it was read: the result would be of two versions of it. Nothing "
        "may write to a model while it is merged; start again when the file is complete."
    )
