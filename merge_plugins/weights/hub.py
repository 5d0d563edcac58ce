"""Find a model on this machine, or download it from the hub."""

from __future__ import annotations

from pathlib import Path

from merge_plugins.errors import CheckpointError

SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]


def resolve(ref: str) -> Path:
    """Find the local folder of a model; download a hub id that is not in the cache."""
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


def cached_repo(real: Path) -> Path | None:
    """Find the folder of a model in the hub's cache that a file lies in; None for any other file.

    ``real``: its path without links, ``models--org--name/blobs/<hash>``.
    """
    repo = real.parent.parent
    is_blob = real.parent.name == "blobs" and repo.name.startswith("models--")
    return repo if is_blob else None
