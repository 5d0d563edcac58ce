"""Write the files a checkpoint has beside its weights: configs, tokenizer, code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge_plugins.folders import naming_file
from merge_plugins.outputs.embedding_files import write_embedding
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import generation_config, generation_folder, tokenizer_folder
from merge_plugins.weights.companions import copy_files, model_file
from merge_plugins.weights.files import tokenizer_files


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
    """Copy the recipe's tokenizer, the donor's code, and what embeds a text beside the weights.

    ``code``: whether to copy Python files at all.
    """
    donor, tokenizer = plan.donor.path, tokenizer_folder(plan.recipe)
    of_tokenizer = [file.name for file in tokenizer_files(tokenizer)]
    of_donor = sorted(file.name for file in donor.glob("*.py"))
    for source, names in ((donor, of_donor), (tokenizer, of_tokenizer)):
        copy_files(source, (name for name in names if code or not name.endswith(".py")), folder)
    if plan.embedding is not None:
        write_embedding(plan, plan.embedding, folder, code=code)
