"""Copy the files beside a model's weights: regular ones of its own folder, of bounded size.

A folder from elsewhere may hold links to anything on this machine. What is copied from it may be
published, so a file that does not lie in the folder is an error.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from merge_plugins.errors import CheckpointError

EACH, TOGETHER = 256 * 2**20, 2**30
"""Most bytes of one file, and of all copied from one folder; a large tokenizer has 40 MB."""


def inside(folder: Path, name: str) -> Path:
    """Find a regular file of a model's folder, or raise `CheckpointError` for anything else.

    In the hub's cache the folder is ``snapshots/<commit>``, and its files are links to ``blobs`` of
    the same model. Any other link has to stay in the folder.
    """
    file, root = folder / name, folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parents[1] / "blobs")
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError) as exc:  # a loop is a RuntimeError before Python 3.13
        raise CheckpointError(f"{file} is a link that leads nowhere: {exc}") from exc
    if not any(real.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{file} leads out of its folder, to {real}. Only files of the folder itself are "
            "copied; put the file there if it belongs to the model, or remove the link"
        )
    if not real.is_file():
        raise CheckpointError(f"{file} is no regular file; remove it")
    return real


def copy_files(folder: Path, names: Iterable[str], target: Path) -> None:
    """Copy files of a model's folder, by their paths in it, to the same paths in another folder."""
    total = 0
    for name in names:
        file = inside(folder, name)
        size = file.stat().st_size
        total += size
        if size > EACH or total > TOGETHER:
            raise CheckpointError(
                f"{folder / name} has {size / 2**20:.0f} MiB. Files beside the weights are copied "
                f"up to {EACH // 2**20} MiB each and {TOGETHER // 2**20} MiB in all; remove those "
                "that the model does not need"
            )
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
