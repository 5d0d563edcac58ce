"""Open a weight file once for all who read it, and refuse to read it when it has changed."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.resident import device_named, keeping


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


class Entry(NamedTuple):
    """One tensor of a weight file: where it lies, or itself if torch has mapped it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    tensor: Tensor | None = None


class OpenedFile:
    """A weight file, mapped: its tensors share the map, and the stamp it had when it was opened."""

    entries: tuple[Entry, ...] = ()
    """What its header lists, in file order."""

    def __init__(self, path: Path, handle: IO[bytes]) -> None:
        self.memory: dict[Any, Any] = {}  # what others computed of its tensors, as long as it lives
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


_opened: weakref.WeakValueDictionary[tuple[Path, Stamp], OpenedFile] = weakref.WeakValueDictionary()
_kept: dict[object, dict[Path, OpenedFile]] = {}
_opening = threading.RLock()


def opened(path: Path, open_anew: Callable[[Path], OpenedFile]) -> OpenedFile:
    """Return the file that somebody has open, if it is still the same, or else open it.

    It is closed when nobody has a tensor of it any more.
    """
    with _opening:
        try:
            found = _opened.get((path, Stamp.of(path.stat())))
        except OSError:
            found = None  # the error is better told by who opens it
        if found is None:
            found = open_anew(path)
            _opened[path, found.stamp] = found
        for kept in _kept.values():
            kept[path] = found  # in place of what it was before a change
        return found


@contextmanager
def shared_sources(*, resident: str | torch.device | None = None) -> Iterator[None]:
    """Keep the weight files of every merge open until the end of the block, for the next merge.

    With them stays what methods have measured of their weights. A file that has changed is opened
    anew. For all threads of the process; blocks may lie in each other.

    ``resident``: a device, such as ``"cpu"`` or ``"cuda"``, in whose memory sources stay too. Each
    weight is read once, by the first merge that needs it. Opening a merge logs how much memory that
    will take, and raises `MergeError` if so much is not free.
    """
    key = object()
    keeps = nullcontext() if resident is None else keeping(device_named(resident))
    with _opening:
        _kept[key] = {}
    try:
        with keeps:
            yield
    finally:
        with _opening:
            del _kept[key]


def changed(path: Path) -> CheckpointError:
    """Build the error for a file that was written to, replaced or removed while it was in use."""
    return CheckpointError(
        f"{path} changed while it was read: the result would be of two versions of it. Nothing "
        "may write to a model while it is merged; start again when the file is complete."
    )
