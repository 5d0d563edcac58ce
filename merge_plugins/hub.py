"""Where a model reference lives on this machine, and what identifies its content."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import xxhash
from tqdm.auto import tqdm

from merge_plugins.checkpoint import adapter_files, tokenizer_files, weight_files
from merge_plugins.errors import CheckpointError, RecipeError
from merge_plugins.references import Delta, Lora, Rebased, Reference, home

SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]
IDENTIFYING = ("config.json", "generation_config.json")
CHUNK = 1 << 26


def resolve(ref: str) -> Path:
    """Return the local folder of a model, downloading a hub id if it is not in the cache."""
    path = Path(ref).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or ref.startswith("."):
        raise CheckpointError(f"no model {ref!r}: no such folder. Check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = ref.partition("@")
    try:
        for weights in ("*.safetensors", "*.bin"):
            patterns = [*SMALL_FILES, weights, f"{weights}.index.json"]
            found = snapshot_download(
                repo, revision=revision or None, allow_patterns=patterns, ignore_patterns=["*/*"]
            )
            if any(Path(found).glob(weights)):
                break
        return Path(found)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise CheckpointError(
            f"no model {ref!r}: no such folder here, and the hub gave none "
            f"({str(exc).splitlines()[0]}). Check the path, or write org/name[@revision]."
        ) from exc


def model_folder(ref: Reference) -> Path:
    """Return the local folder with a model's config and code, or `RecipeError` if it has none."""
    folder = resolve(home(ref))
    if folder.is_file():
        raise RecipeError(
            f"{folder} is a file of tensors without config.json, so no live model is built of "
            "them: 'merge-plugins save' writes their merge; or name a model folder as base_model:"
        )
    return folder


def identity(ref: Reference) -> str:
    """Return what a model's weights and configuration are, not where: hex characters, 32 if stored.

    Every byte of every weight file counts: two fine-tunes may differ in a single row. Files in
    the hub's cache are named after their content already; others are read once and remembered.
    """
    if isinstance(ref, str):
        folder = resolve(ref)
        return _identity([*weight_files(folder), *(folder / name for name in IDENTIFYING)])
    if isinstance(ref, Lora):
        parts = "lora", identity(ref.model), _identity(adapter_files(resolve(ref.adapter)))
    elif isinstance(ref, Delta):
        parts = "delta", identity(ref.model), identity(ref.delta)
    elif isinstance(ref, Rebased):
        parts = "base_model", identity(ref.model), identity(ref.base_model)
    else:
        return ref.digest
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def tokenizer_identity(ref: str) -> str:
    """Return what a model's tokenizer is: 32 hex characters."""
    return _identity(tokenizer_files(resolve(ref)))


def _identity(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        if file.is_file():
            whole.update(f"{file.name}={content(file)}\n".encode())
    return whole.hexdigest()[:32]


def content(file: Path) -> str:
    """Return a hash of a file's bytes, remembered until the file changes."""
    real = file.resolve()
    if real.parent.name == "blobs":  # hub cache: .../models--org--name/blobs/<hash of content>
        return real.name
    stat = real.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    remembered = _cache() / hashlib.sha256(key.encode()).hexdigest()
    with suppress(OSError):
        return remembered.read_text()
    found = _hash(real, stat.st_size)
    with suppress(OSError):  # a read-only home only means hashing again next time
        remembered.parent.mkdir(parents=True, exist_ok=True)
        fresh = remembered.with_suffix(f".{os.getpid()}")
        fresh.write_text(found)
        fresh.replace(remembered)
    return found


def cache_folder() -> Path:
    """Return where we keep what is costly to compute: $MERGE_PLUGINS_CACHE, or the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MERGE_PLUGINS_CACHE") or f"{root}/merge-plugins").expanduser()


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
