"""Find the files of a sentence-transformers model beside those of its transformer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.companions import model_path
from merge_plugins.weights.modules import NAME, Module, sentence_modules

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of a module's file of weights; the first that exists is read."""


def sentence_files(folder: Path) -> list[str]:
    """List the files of sentence-transformers in a model's folder, such as its pooling config.

    Raises `CheckpointError` if a module lies elsewhere or lacks its files.
    """
    modules = sentence_modules(folder)
    if not modules:
        return []
    files = [folder / NAME, *folder.glob("*sentence_*.json")]
    for module in modules:
        files += _files(folder, module)
    return sorted({str(file.relative_to(folder)) for file in files})


def _files(folder: Path, module: Module) -> Iterator[Path]:
    """Iterate over the files in a module's own folder."""
    if not module.path:
        return
    where = folder / module.path
    if not os.path.isdir(where):  # noqa: PTH112  # Path raises for a name too long
        if module.needs_files:
            raise CheckpointError(
                f"{folder}: modules.json names {module.path}, a {module.kind}, which is not there. "
                "Download the model again, with its folders."
            )
        return
    model_path(folder, module.path)
    yield from (file for file in where.rglob("*") if file.is_file())
