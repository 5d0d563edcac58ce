"""Find a model on this machine, or download it from the hub."""

from __future__ import annotations

from contextlib import suppress
from glob import escape
from pathlib import Path

from merge_plugins.errors import CheckpointError, NoModelError, did_you_mean_path, first_line
from merge_plugins.weights.modules import sentence_modules

SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]
OF_A_MODULE = [*SMALL_FILES, "*.safetensors", "*.bin"]
"""Files of a module of sentence-transformers, in its own folder and below."""


def resolve(ref: str) -> Path:
    """Find the local folder of a model; download a hub id that is not in the cache."""
    path = Path(ref).expanduser()
    if path.exists():
        return path
    hint = did_you_mean_path(path)
    if path.is_absolute() or ref.startswith("."):
        raise NoModelError(f"no model {ref!r}: no such folder{hint or _from_here(path)}")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = ref.partition("@")
    try:
        return _snapshot(repo, revision or None)
    except CheckpointError:  # an OSError too
        raise
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        link = " The hub" if hint else ", and the hub"
        raise NoModelError(
            f"no model {ref!r}: no such folder here{hint}{link} gave none ({_why(exc, repo)}). "
            "Check the path, or write org/name[@revision]."
        ) from exc


def _from_here(path: Path) -> str:
    """Explain a path that is right from the current folder, and stands in a recipe elsewhere."""
    ends = (Path(*path.parts[i:]) for i in range(1, len(path.parts)))
    found = next((end for end in ends if end.exists()), None)
    if found is None:
        return ". Check the path."
    return f". Paths in a recipe file start in its folder; from here, {found} is one."


def _why(exc: Exception, repo: str) -> str:
    """Explain why the hub gave no model, and what to do where that is not plain."""
    from huggingface_hub import constants, errors

    if isinstance(exc, errors.GatedRepoError):
        return f"accept its terms at https://huggingface.co/{repo}, then run 'hf auth login'"
    if isinstance(exc, errors.RepositoryNotFoundError):
        return "it has none, or a private one: then run 'hf auth login'"
    if isinstance(exc, errors.LocalEntryNotFoundError):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no connection"
        return f"{offline}, and its cache on this machine has none"
    return first_line(exc)


def _snapshot(repo: str, revision: str | None) -> Path:
    """Download a model's weights, of one format, and the small files beside and below them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(allow: list[str], ignore: list[str] | None = None) -> Path:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=allow, ignore_patterns=ignore)
        )

    for weights in ("*.safetensors", "*.bin"):
        found = download([*SMALL_FILES, weights, f"{weights}.index.json"], ["*/*"])
        if any(found.glob(weights)):
            break
    below = [escape(module.path) for module in sentence_modules(found) if module.path]
    if below:
        with suppress(LocalEntryNotFoundError):  # offline; what a module needs is checked later
            download([f"{path}/{name}" for path in below for name in OF_A_MODULE])
    return found


def cached_repo(real: Path) -> Path | None:
    """Find the folder of a model in the hub's cache that a file lies in; None for any other file.

    ``real``: its path without links, ``models--org--name/blobs/<hash>``.
    """
    repo = real.parent.parent
    is_blob = real.parent.name == "blobs" and repo.name.startswith("models--")
    return repo if is_blob else None
