"""Write the files a checkpoint has beside its weights: configs, tokenizer, code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import generation_config, tokenizer_folder
from merge_plugins.weights.files import tokenizer_files


def sentence_files(folder: Path) -> list[str]:
    """List the files of sentence-transformers in a model's folder, such as its pooling config.

    Raises `CheckpointError` if one of its modules is absent or has weights of its own.
    """
    if not (folder / "modules.json").is_file():
        return []
    files = [*folder.glob("modules.json"), *folder.glob("*sentence_*.json")]
    for name in filter(None, (module["path"] for module in _modules(folder))):
        inside = [file for file in (folder / name).rglob("*") if file.is_file()]
        weights = [file for file in inside if file.suffix in (".safetensors", ".bin")]
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder}: modules.json names {name}, which is not there")
        if weights:
            raise CheckpointError(
                f"{weights[0]} holds weights of a module that is no part of the merge; remove "
                f"{folder / 'modules.json'} to use the transformer alone"
            )
        files += inside
    return sorted({str(file.relative_to(folder)) for file in files})


def _modules(folder: Path) -> list[dict[str, str]]:
    """Read modules.json, the list of modules of a sentence-transformers model."""
    file = folder / "modules.json"
    try:
        modules: list[dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
        return [{"path": module["path"]} for module in modules]
    except (ValueError, TypeError, KeyError) as exc:
        raise CheckpointError(f"{file} is no list of modules: {exc!r}") from exc


def write_configs(recipe: Recipe, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``config.json``, and ``generation_config.json`` if the recipe has one."""
    configs = {"config.json": config, "generation_config.json": generation_config(recipe)}
    for name, content in configs.items():
        if content:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_companions(plan: Plan, folder: Path) -> None:
    """Copy the recipe's tokenizer, and the donor's code and sentence-transformers files."""
    donor, tokenizer = plan.donor.path, tokenizer_folder(plan.recipe)
    for file in [*donor.glob("*.py"), *tokenizer_files(tokenizer)]:
        shutil.copyfile(file, folder / file.name)
    for name in sentence_files(donor):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(donor / name, folder / name)
