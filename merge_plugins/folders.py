"""Write a folder or a file whole or not at all; find the cache folder.

Everything is written under a hidden name beside the target and renamed when it is complete. A run
that fails or is interrupted leaves nothing behind. A run that is killed outright leaves its hidden
folder; the next one that writes to the same place removes it, as nobody holds its lock any more.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from merge_plugins.errors import MergeError

try:
    import fcntl
except ImportError:  # no such locks on Windows: what a killed run leaves stays until it is removed
    fcntl = None  # type: ignore[assignment]

UNFINISHED = ".unfinished"
"""Ending of the hidden file that is locked while something is written."""
LOCK = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(UNFINISHED)}")
HELD = "d"
"""What the hidden folder's name has after its lock's."""


def cache_folder() -> Path:
    """Return the folder for costly results: $MERGE_PLUGINS_CACHE, or one in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MERGE_PLUGINS_CACHE") or f"{root}/merge-plugins").expanduser()


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """Check that a folder is absent or empty and return its absolute path, or `MergeError`."""
    target = Path(folder).expanduser().absolute()
    if target.exists() and not target.is_dir():
        raise MergeError(f"{target} is a file; name a new folder")
    if target.exists() and any(target.iterdir()):
        raise MergeError(f"{target} exists and is not empty; name a new folder or remove it")
    return target


@contextmanager
def complete_or_nothing(target: Path, size: int = 0, *, shared: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside the target; rename it on success, delete it on any failure.

    ``size``: bytes that will be written; raises `MergeError` at once if the disk has less.
    ``shared``: several processes may write the same content to the target, and the first one's
    folder stays. Otherwise a target that has files when the block ends is an error.
    """
    unfinished = target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise MergeError(
                f"{target}: the merge needs {size / 1e9:.2f} GB, "
                f"the disk has {free / 1e9:.2f} GB free"
            )
        with _locked(target) as lock:
            unfinished = lock.with_name(lock.name + HELD)
            try:
                unfinished.mkdir()
                yield unfinished
                if shared and target.is_dir() and any(target.iterdir()):
                    return
                if target.is_dir():
                    target.rmdir()
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except MergeError:
        raise  # a damaged source is an OSError too, and names its own file
    except OSError as exc:
        if not (shared and target.is_dir()):
            why = str(exc).replace(str(unfinished), str(target))
            raise MergeError(f"{target} was not written: {why}") from exc


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file atomically: readers never get a part of it, and the last writer wins.

    Text is UTF-8. Raises `OSError` where the folder cannot be written to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(file.parent)
    with _locked(file) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(file)


@contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """Add a file's name to an `OSError` that has none: a full disk shows when bytes are written."""
    try:
        yield
    except OSError as exc:
        if exc.errno is not None and exc.filename is None:
            exc.filename = str(file)
        raise


def remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left in a folder; what a living one is writing there is locked."""
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        left = [Path(entry.path) for entry in entries if LOCK.fullmatch(entry.name)]
    for lock in left:
        with suppress(OSError):  # another user's, locked, or just removed by another run
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_name(lock.name + HELD), ignore_errors=True)
                lock.unlink()
            finally:
                os.close(handle)


@contextmanager
def _locked(target: Path) -> Iterator[Path]:
    """Yield a new, hidden file beside the target, locked until the block ends, then gone.

    The system gives the lock back when a process ends, however it ends; so it holds between
    containers, where the number of a process says nothing.
    """
    file, handle = _lock(target)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _lock(target: Path) -> tuple[Path, int | None]:
    while True:
        file = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            os.close(handle)  # Windows neither renames nor removes a file that is open
            return file, None
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if file.exists():  # or another run took it for abandoned, before the lock was ours
            return file, handle
        os.close(handle)
