"""What a published merge says about itself: its recipe and a model card in the hub's format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.plan import Plan
from merge_plugins.recipe import Recipe


def is_local(ref: str) -> bool:
    """Whether a reference is a folder on this machine and not a hub id."""
    return Path(ref).is_absolute()


def portable(recipe: Recipe, folder: Path) -> str:
    """Return the recipe's YAML with local models relative to ``folder``, where it will stand."""

    def relative(ref: str) -> str:
        return os.path.relpath(ref, folder) if is_local(ref) else ref

    held = recipe.as_dict()
    for entry in held["models"]:
        entry["model"] = relative(entry["model"])
    for key in ("base_model", "tokenizer_source"):
        if held.get(key, "base") != "base":
            held[key] = relative(held[key])
    return yaml.safe_dump(held, sort_keys=False, allow_unicode=True)


def model_card(found: Plan, name: str) -> str:
    """Return README.md: front matter the hub reads, the models, the recipe, how to score it."""
    recipe, method = found.recipe, found.method
    shown = {ref: Path(ref).name if is_local(ref) else ref for ref in recipe.references}
    front: dict[str, Any] = {
        "base_model": [ref.partition("@")[0] for ref in shown if not is_local(ref)],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "merge-plugins"],
    }
    front = {key: value for key, value in front.items() if value}
    held = recipe.as_dict()
    for entry in held["models"]:
        entry["model"] = shown[entry["model"]]
    for key in ("base_model", "tokenizer_source"):
        if key in held:
            held[key] = shown.get(held[key], held[key])
    models = "\n".join(f"- {shown[model.ref]}" for model in recipe.experts)
    base = f"Base: {shown[recipe.base_model]}.\n\n" if recipe.base_model else ""
    paper = f" ({method.paper})" if method.paper else ""
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n"
        f"A merge by `{method.name}`{paper} of\n\n{models}\n\n{base}"
        f"Made with merge-plugins; digest `{recipe.digest}`. The recipe, also in `merge.yaml`:\n\n"
        f"```yaml\n{yaml.safe_dump(held, sort_keys=False, allow_unicode=True)}```\n"
    )
