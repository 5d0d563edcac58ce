"""Write a folder or a file whole or not at all; find the cache folder.

Everything is written under a hidden name beside the target and renamed when it is complete. A run
that fails or is interrupted leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merge_plugins.errors import MergeError


def cache_folder() -> Path:
    """Return the folder for costly results: $MERGE_PLUGINS_CACHE, or one in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MERGE_PLUGINS_CACHE") or f"{root}/merge-plugins").expanduser()


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """Check that a folder is absent or empty and return its absolute path, or `MergeError`."""
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MergeError(f"{target} exists and is not empty; name a new folder or remove it")
    return target


@contextmanager
def complete_or_nothing(target: Path, size: int = 0, *, shared: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside the target; rename it on success, delete it on any failure.

    ``size``: bytes that will be written; raises `MergeError` at once if the disk has less.
    ``shared``: several processes may write the same content to the target, and the first one's
    folder stays. Otherwise a target that has files when the block ends is an error.
    """
    unfinished = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise MergeError(
                f"{target}: the merge needs {size / 1e9:.2f} GB, "
                f"the disk has {free / 1e9:.2f} GB free"
            )
        unfinished.mkdir()
        yield unfinished
        if shared and target.is_dir() and any(target.iterdir()):
            return
        if target.is_dir():
            target.rmdir()
        unfinished.rename(target)
    except MergeError:
        raise  # a damaged source is an OSError too, and names its own file
    except OSError as exc:
        if not (shared and target.is_dir()):
            raise MergeError(f"{target} was not written: {exc}") from exc
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file atomically: readers never get a part of it, and the last writer wins.

    Text is UTF-8. Raises `OSError` where the folder cannot be written to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _beside(file)
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
