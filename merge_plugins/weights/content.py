"""Hash a file's bytes, and cache the hash until the file changes."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import xxhash
from tqdm.auto import tqdm

from merge_plugins.errors import CheckpointError
from merge_plugins.folders import cache_folder, write_whole
from merge_plugins.weights.hub import cached_repo
from merge_plugins.weights.opened import Stamp, changed

CHUNK = 1 << 20
"""Bytes read at a time; they fit the cache of a core."""
SHA1, SHA256 = (re.compile(f"[0-9a-f]{{{n}}}") for n in (40, 64))
"""Names in the hub's cache: Git's hash of a small file, SHA-256 of the bytes of a large one."""


def content(file: Path) -> str:
    """Hash a file's bytes, or return the cached hash if the file has not changed.

    The hub's own name for its content stands for a file in the hub's cache.
    """
    named = _name_in_hub_cache(file)
    if named:
        return named
    with suppress(OSError):
        return _remembered(file).read_text(encoding="utf-8")
    return _hashed(file)


def is_known(file: Path) -> bool:
    """Whether `content` need not read a file."""
    try:
        return _name_in_hub_cache(file) is not None or _remembered(file).is_file()
    except OSError:
        return False


def verify(file: Path) -> None:
    """Hash a file's bytes again, and remember that in place of what was known about it.

    Raises `CheckpointError` for a file of the hub's cache whose content is not what its name says.
    """
    named = _name_in_hub_cache(file)
    if not named:
        _hashed(file)
        return
    found: Hash = hashlib.sha256()
    if SHA1.fullmatch(named):
        found = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    if _digest(file, found) != named:
        raise CheckpointError(
            f"{file} is damaged or was changed: in the hub's cache it is named {named}, the hash "
            f"of its bytes is {found.hexdigest()}. Remove {file.resolve()} and download it again."
        )


def _name_in_hub_cache(file: Path) -> str | None:
    """Find the hash that names a file in the hub's cache; None for a file anywhere else.

    The hub's cache is ``models--org--name/snapshots/<revision>/file``, a link to
    ``models--org--name/blobs/<hash>``.
    """
    if not file.is_symlink():
        return None
    real, snapshots = file.resolve(), file.parent.resolve().parent
    repo = cached_repo(real)
    if repo is None or snapshots != repo / "snapshots":
        return None
    return real.name if SHA256.fullmatch(real.name) or SHA1.fullmatch(real.name) else None


def _remembered(file: Path) -> Path:
    """Return the path of a file's cached hash; it depends on all that changes with the file."""
    real = file.resolve()
    stat = real.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    return _cache() / hashlib.sha256(key.encode()).hexdigest()


def _cache() -> Path:
    return cache_folder() / "content"


def _hashed(file: Path) -> str:
    remembered = _remembered(file)
    fresh = _digest(file, xxhash.xxh3_128())
    with suppress(OSError):  # a read-only cache: the file is hashed again next time
        write_whole(remembered, fresh)
    return fresh


class Hash(Protocol):
    """A hash that is being computed."""

    def update(self, data: memoryview, /) -> None:
        """Take bytes."""

    def hexdigest(self) -> str:
        """Return the hash of the bytes so far."""


def _digest(file: Path, digest: Hash) -> str:
    """Feed a file's bytes to a hash; raise `CheckpointError` if the file changes meanwhile."""
    buffer = memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as handle:
        before = Stamp.of(os.fstat(handle.fileno()))
        show = tqdm(
            total=before.size, unit="B", unit_scale=True, desc=f"Identifying {file.name}", delay=2
        )
        with show:
            while n_read := handle.readinto(buffer):  # not mapped: a file cut off would kill
                digest.update(buffer[:n_read])
                show.update(n_read)
        if Stamp.of(os.fstat(handle.fileno())) != before:
            raise changed(file)
    return digest.hexdigest()
