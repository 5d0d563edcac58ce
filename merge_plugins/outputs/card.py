"""Write the recipe and model card of a published merge, in the hub's format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.identity import digest
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe, Reference
from merge_plugins.recipe.references import files, written


def is_local(ref: str) -> bool:
    """Whether a reference is a folder on this machine and not a hub id."""
    return Path(ref).is_absolute()


def portable(recipe: Recipe, folder: Path) -> str:
    """Format the recipe as YAML, with local models relative to the recipe's own ``folder``."""

    def relative(ref: str) -> str:
        return os.path.relpath(ref, folder) if is_local(ref) else ref

    content = recipe.as_dict(relative)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def shown(ref: str) -> str:
    """Shorten a local path to its last part; a hub id stays."""
    return Path(ref).name if is_local(ref) else ref


def _line(ref: Reference) -> str:
    """Format a model reference on one line."""
    reference = written(ref, shown)
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)


def model_card(plan: Plan, name: str, settled: Mapping[str, Any]) -> str:
    """Compose README.md: front matter for the hub, the models and the recipe.

    ``settled``: values that the method computed, see `merge_plugins.engine.Merge.settled`.
    """
    recipe, method = plan.recipe, plan.method
    stored = dict.fromkeys(file for ref in recipe.references for file in files(ref))
    front: dict[str, Any] = {
        "base_model": [ref.partition("@")[0] for ref in stored if not is_local(ref)],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "merge-plugins"],
    }
    front = {key: value for key, value in front.items() if value}
    content = recipe.as_dict(shown)
    models = "\n".join(f"- {_line(ref)}" for ref in plan.experts)
    base = f"Base: {_line(recipe.base_model)}.\n\n" if recipe.base_model else ""
    paper = f" ({method.paper})" if method.paper else ""
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n"
        f"A merge by `{method.name}`{paper} of\n\n{models}\n\n{base}"
        f"Made with merge-plugins; digest `{digest(recipe)}`. The recipe, also in `merge.yaml`:\n\n"
        f"```yaml\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}```\n"
        f"{_came_down_to(settled)}"
    )


def _came_down_to(settled: Mapping[str, Any]) -> str:
    if not settled:
        return ""
    text = yaml.safe_dump(json.loads(json.dumps(settled)), sort_keys=False)  # tuples as lists
    message = "On these models it came down to, where a list has one value for each"
    return f"\n{message}:\n\n```yaml\n{text}```\n"
