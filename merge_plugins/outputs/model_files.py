"""Write the files a checkpoint has beside its weights: configs, tokenizer, code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.folders import naming_file
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import generation_config, generation_folder, tokenizer_folder
from merge_plugins.weights.companions import copy_files, model_file
from merge_plugins.weights.files import tokenizer_files
from merge_plugins.weights.sentence import sentence_files


def sentence_texts(folder: Path) -> list[str]:
    """List the files of sentence-transformers in a model's folder.

    Raises `CheckpointError` if one of its modules has weights of its own.
    """
    files = sentence_files(folder)
    weights = [name for name in files if name.endswith((".safetensors", ".bin"))]
    if weights:
        raise CheckpointError(
            f"{folder / weights[0]} holds weights of a module that is no part of the merge; remove "
            f"{folder / 'modules.json'} to use the transformer alone"
        )
    return files


def write_configs(recipe: Recipe, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``config.json``, and ``generation_config.json`` if the recipe has one."""
    generation = generation_config(recipe)
    if generation:
        model_file(generation_folder(recipe), "generation_config.json")
    for name, content in {"config.json": config, "generation_config.json": generation}.items():
        if content:
            with naming_file(folder / name):
                text = json.dumps(content, indent=2) + "\n"
                (folder / name).write_text(text, encoding="utf-8")


def copy_companions(plan: Plan, folder: Path, *, code: bool = True) -> None:
    """Copy the recipe's tokenizer, and the donor's code and sentence-transformers files.

    ``code``: whether to copy Python files at all.
    """
    donor, tokenizer = plan.donor.path, tokenizer_folder(plan.recipe)
    of_donor = [*sorted(file.name for file in donor.glob("*.py")), *sentence_texts(donor)]
    of_tokenizer = [file.name for file in tokenizer_files(tokenizer)]
    for source, names in ((donor, of_donor), (tokenizer, of_tokenizer)):
        copy_files(source, (name for name in names if code or not name.endswith(".py")), folder)
