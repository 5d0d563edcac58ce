"""Copy the files beside a model's weights: regular ones of a model's folder, of bounded size.

A folder from elsewhere may hold links to anything on this machine, and what is copied may be
published. A link is followed to what a recipe could name as well, a file of a model, and to nothing
else.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.files import LARGEST, read_json
from merge_plugins.weights.hub import cached_repo

TOGETHER = 2**30
"""Most bytes of all files copied from one folder."""


def model_file(folder: Path, name: str) -> Path:
    """Find a regular file of a model by its path in the folder; see `model_path`."""
    found = model_path(folder, name)
    if not found.is_file():
        raise CheckpointError(f"{folder / name} is no regular file; remove it")
    return found


def model_path(folder: Path, name: str) -> Path:
    """Resolve a path in a model's folder, or raise `CheckpointError` where it is no model's.

    It may be a link to the same path in another model's folder, as when a user shares large files,
    or to the hub's cache.
    """
    path = folder / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as exc:  # a loop is a RuntimeError before Python 3.13
        raise CheckpointError(f"{path} is a link that leads nowhere: {exc}") from exc
    if real.is_relative_to(folder.resolve()) or cached_repo(real) or _is_shared(real, name):
        return real
    link, to = (shlex.quote(str(each)) for each in (path.absolute(), real))
    command = f": rm {link} && cp -r {to} {link}" if path.is_symlink() else ""
    raise CheckpointError(
        f"{path} leads out of its folder, to {real}, which is not {name} of another model. If it "
        f"belongs to this one, put a copy in the link's place{command}"
    )


def _is_shared(real: Path, name: str) -> bool:
    """Whether a path ends with this name, below some model's folder."""
    n_parts = len(PurePath(name).parts)
    if real.parts[-n_parts:] != PurePath(name).parts:
        return False
    config = Path(*real.parts[:-n_parts]) / "config.json"
    with suppress(CheckpointError):
        return "model_type" in read_json(config)
    return False


def copy_files(folder: Path, names: Iterable[str], target: Path) -> None:
    """Copy files of a model's folder, by their paths in it, to the same paths in another folder."""
    total = 0
    for name in names:
        file = model_file(folder, name)
        size = file.stat().st_size
        total += size
        if size > LARGEST or total > TOGETHER:
            raise CheckpointError(
                f"{folder / name} has {size / 2**20:.0f} MiB. Files beside the weights are copied "
                f"up to {LARGEST // 2**20} MiB each and {TOGETHER // 2**20} MiB in all; remove "
                "those that the model does not need"
            )
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
