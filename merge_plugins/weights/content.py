"""Hash a file's bytes, and cache the hash until the file changes."""

from __future__ import annotations

import hashlib
import mmap
from contextlib import suppress
from pathlib import Path

import xxhash
from tqdm.auto import tqdm

from merge_plugins.folders import cache_folder, write_whole

CHUNK = 1 << 26


def content(file: Path) -> str:
    """Hash a file's bytes, or return the cached hash if the file has not changed."""
    real = file.resolve()
    if real.parent.name == "blobs":  # hub cache: .../models--org--name/blobs/<hash of content>
        return real.name
    stat = real.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    remembered = _cache() / hashlib.sha256(key.encode()).hexdigest()
    with suppress(OSError):
        return remembered.read_text()
    fresh = _hash(real, stat.st_size)
    with suppress(OSError):  # a read-only cache: the file is hashed again next time
        write_whole(remembered, fresh)
    return fresh


def _cache() -> Path:
    return cache_folder() / "content"


def _hash(file: Path, size: int) -> str:
    digest = xxhash.xxh3_128()
    if size == 0:
        return digest.hexdigest()
    show = tqdm(total=size, unit="B", unit_scale=True, desc=f"Identifying {file.name}", delay=2)
    with file.open("rb") as handle, show:
        data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        for start in range(0, size, CHUNK):
            stop = min(start + CHUNK, size)
            with memoryview(data) as view, view[start:stop] as part:
                digest.update(part)
            if hasattr(mmap, "MADV_DONTNEED"):
                data.madvise(mmap.MADV_DONTNEED, start, stop - start)
            show.update(stop - start)
        data.close()
    return digest.hexdigest()
