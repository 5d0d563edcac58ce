"""Write what a sentence-transformers model is besides its transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.hf.rehearsal import read_config
from merge_plugins.planning import Plan
from merge_plugins.weights.companions import copy_files
from merge_plugins.weights.modules import NAME, WEIGHTS
from merge_plugins.weights.sentence import (
    LEGACY_POOLING,
    OF_TRANSFORMER,
    SentenceModel,
    sentence_files,
    sentence_model,
)

ALWAYS = 4
"""Modes that a pooling config lists even if they are off: releases before 2.3 know no others."""


def write_embedding(plan: Plan, model: SentenceModel, folder: Path, *, code: bool) -> None:
    """Write the modules and settings of the merge's sentence-transformers model.

    ``code``: whether to copy Python files.
    """
    if model.folder is None:
        _write_pooling(plan, model, folder)
        return
    names = [name for name in sentence_files(model.folder) if Path(name).name not in WEIGHTS]
    others = [name for name in names if name.endswith((".safetensors", ".bin"))]
    if others:
        raise CheckpointError(
            f"{model.folder / others[0]} holds weights that are no part of the merge, because "
            f"sentence-transformers reads {' or '.join(WEIGHTS)}; remove it"
        )
    copy_files(model.folder, (name for name in names if code or not name.endswith(".py")), folder)
    written = sentence_model(folder)
    assert written is not None, "its modules.json is among the files"
    if model.max_seq_length and model.max_seq_length != written.max_seq_length:
        _set_max_seq_length(folder, model.max_seq_length)  # the tokenizer is another model's


def _write_pooling(plan: Plan, model: SentenceModel, folder: Path) -> None:
    """Write the modules that a recipe's ``pooling:`` names."""
    config = read_config(str(plan.donor.path), plan.donor.path / "config.json", False)
    listed_modes = enumerate(LEGACY_POOLING.items())
    modes = {
        key: mode in model.pooling
        for i, (key, mode) in listed_modes
        if i < ALWAYS or mode in model.pooling
    }
    width = config.get_text_config().hidden_size
    for module in model.modules:
        if module.kind == "Pooling":
            config_of_it = {"word_embedding_dimension": width, **modes}
            _write(folder / module.path / "config.json", config_of_it)
    listed = [
        {"idx": i, "name": str(i), "path": module.path, "type": module.type}
        for i, module in enumerate(model.modules)
    ]
    _write(folder / NAME, listed)


def _set_max_seq_length(folder: Path, longest: int) -> None:
    """Set how many tokens the transformer reads, whatever its tokenizer says."""
    found = [folder / name for name in OF_TRANSFORMER if (folder / name).is_file()]
    file = found[0] if found else folder / OF_TRANSFORMER[0]
    settings = json.loads(file.read_text(encoding="utf-8")) if found else {}
    _write(file, {**settings, "max_seq_length": longest})


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
