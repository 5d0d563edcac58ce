"""Write the files a checkpoint has beside its weights: configs, tokenizer, code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.folders import naming_file
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import generation_config, generation_folder, tokenizer_folder
from merge_plugins.weights.companions import copy_files, model_file, model_path
from merge_plugins.weights.files import parsed_json, tokenizer_files


def sentence_files(folder: Path) -> list[str]:
    """List the files of sentence-transformers in a model's folder, such as its pooling config.

    Raises `CheckpointError` if one of its modules is absent, lies elsewhere, or has weights of its
    own.
    """
    if not (folder / "modules.json").is_file():
        return []
    files = [*folder.glob("modules.json"), *folder.glob("*sentence_*.json")]
    for name in filter(None, (module["path"] for module in sentence_modules(folder))):
        if not _is_below(name):
            raise CheckpointError(
                f"{folder}: modules.json names {name!r}, which is no folder in this one"
            )
        if not os.path.isdir(folder / name):  # noqa: PTH112  # Path raises for a name too long
            raise CheckpointError(f"{folder}: modules.json names {name}, which is not there")
        model_path(folder, name)
        within = [file for file in (folder / name).rglob("*") if file.is_file()]
        weights = [file for file in within if file.suffix in (".safetensors", ".bin")]
        if weights:
            raise CheckpointError(
                f"{weights[0]} holds weights of a module that is no part of the merge; remove "
                f"{folder / 'modules.json'} to use the transformer alone"
            )
        files += within
    return sorted({str(file.relative_to(folder)) for file in files})


def _is_below(name: str) -> bool:
    """Whether a path names something below the folder where it starts."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def sentence_modules(folder: Path) -> list[dict[str, str]]:
    """Read modules.json: path and type of each module of a sentence-transformers model."""
    file = folder / "modules.json"
    modules = parsed_json(file)
    try:
        found = [{"path": module["path"], "type": module.get("type", "")} for module in modules]
        texts = [text for module in found for text in module.values()]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise TypeError("path and type are texts")
    except (AttributeError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{file} is no list of modules: {exc!r}") from exc
    return found


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
    of_donor = [*sorted(file.name for file in donor.glob("*.py")), *sentence_files(donor)]
    of_tokenizer = [file.name for file in tokenizer_files(tokenizer)]
    for source, names in ((donor, of_donor), (tokenizer, of_tokenizer)):
        copy_files(source, (name for name in names if code or not name.endswith(".py")), folder)
