"""From a recipe file, YAML or JSON, to the mapping it holds."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.errors import RecipeError

NAMES = ("merge.yaml", "mergekit_config.yml")


def find(path: Path) -> Path:
    """Return the recipe file; a folder stands for its merge.yaml or mergekit_config.yml."""
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        if not found:
            raise RecipeError(f"{path} holds no {' or '.join(NAMES)}")
        return found[0]
    if not path.is_file():
        raise RecipeError(f"no recipe file at {path}")
    return path


def read(path: Path) -> dict[str, Any]:
    """Return what a recipe file holds."""
    try:
        text = path.read_text(encoding="utf-8")
        held = from_json(text) if path.suffix == ".json" else from_yaml(text)
    except UnicodeDecodeError as exc:
        raise RecipeError(f"a recipe is text; {exc}") from exc
    if not isinstance(held, dict):
        raise RecipeError(f"a recipe is a mapping (merge_method: …, models: …); got {held!r:.80}")
    return held


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every recipe error raised inside say which file it is about."""
    try:
        yield
    except RecipeError as exc:
        raise type(exc)(f"{path}: {exc}") from exc


def from_yaml(text: str) -> Any:
    """Return one YAML document; a key written twice is an error."""
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as exc:
        raise RecipeError(f"not one YAML document: {exc}") from exc


def from_json(text: str) -> Any:
    """Return a JSON value; a key written twice is an error."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as exc:
        raise RecipeError(f"not JSON: {exc}") from exc


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; the first is then a setting nobody reads."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                line = node.start_mark.line + 1
                raise RecipeError(f"{key!r} is written twice in the mapping at line {line}")
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"{key!r} is written twice in one mapping")
    return dict(pairs)
