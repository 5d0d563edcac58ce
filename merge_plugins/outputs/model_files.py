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
    """Return what sentence-transformers has in a model's folder, such as how it pools tokens.

    Raises `CheckpointError` where that is not all there, or is weights of its own.
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
    """Return the modules of a sentence-transformers model, as their file lists them."""
    file = folder / "modules.json"
    try:
        found: list[dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
        return [{"path": module["path"]} for module in found]
    except (ValueError, TypeError, KeyError) as exc:
        raise CheckpointError(f"{file} is no list of modules: {exc!r}") from exc


def write_configs(recipe: Recipe, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``config.json``, and the generation config that the recipe asks for."""
    configs = {"config.json": config, "generation_config.json": generation_config(recipe)}
    for name, held in configs.items():
        if held:
            (folder / name).write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def copy_companions(found: Plan, folder: Path) -> None:
    """Copy the tokenizer that the recipe asks for, and what else its donor has beside weights."""
    donor, tokenizer = found.donor.path, tokenizer_folder(found.recipe)
    for file in [*donor.glob("*.py"), *tokenizer_files(tokenizer)]:
        shutil.copyfile(file, folder / file.name)
    for name in sentence_files(donor):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(donor / name, folder / name)
