"""From a recipe file, YAML or JSON, to the mapping it holds.

A YAML file may hold several documents, as mergekit-multi reads them: each but one has a ``name``,
by which the others may use it as a model, in any order. The one without, or else the last, is the
recipe of the file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.errors import MergeWarning, RecipeError

NAME = "merge.yaml"
"""What we call a recipe in a folder of its own."""
NAMES = (NAME, "mergekit_config.yml")


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


@dataclass(frozen=True)
class Documents:
    """What a recipe file holds."""

    main: Mapping[str, Any]
    """The recipe of the file."""
    named: Mapping[str, Mapping[str, Any]]
    """The documents that have a name, by which others use them as a model."""


def read(path: Path) -> Documents:
    """Read a recipe file; of several documents, the one the others are for is its recipe."""
    documents = _documents(path)
    main = next((each for each in documents if "name" not in each), documents[-1])
    for each in documents:
        others = [other for other in documents if other is not each]
        if each is not main and not any(each["name"] in _words(other) for other in others):
            warnings.warn(
                f"{path}: document {each['name']!r} is not merged: no other uses it as a model",
                MergeWarning,
                stacklevel=3,
            )
    return Documents(main, {each["name"]: each for each in documents if "name" in each})


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise RecipeError(f"a recipe is text; {exc}") from exc
    found = [from_json(text)] if path.suffix == ".json" else list(_each_from_yaml(text))
    for held in found or [None]:
        if not isinstance(held, dict):
            raise RecipeError(
                f"a recipe is a mapping (merge_method: …, models: …); got {held!r:.80}"
            )
    names = [held["name"] for held in found if "name" in held]
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise RecipeError(f"each document needs a name of its own; got {name!r}")
    if len(found) - len(names) > 1:
        raise RecipeError(
            f"{len(found) - len(names)} documents without name: only the last merge may have none; "
            "add name: <word> to the others"
        )
    return found


def _words(held: Any) -> set[str]:
    """Return every text in a document, and what stands before a '+' in it."""
    if isinstance(held, str):
        return {held, held.partition("+")[0]}
    items = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return set().union(*map(_words, items))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every recipe error raised inside say which file it is about."""
    try:
        yield
    except RecipeError as exc:
        raise type(exc)(f"{path}: {exc}") from exc


def from_yaml(text: str) -> Any:
    """Return one YAML document; a key written twice is an error."""
    found = list(_each_from_yaml(text))
    if len(found) > 1:
        raise RecipeError(f"one YAML document is expected here; got {len(found)}")
    return found[0] if found else None


def _each_from_yaml(text: str) -> Iterator[Any]:
    try:
        yield from yaml.load_all(text, _UniqueKeys)
    except yaml.YAMLError as exc:
        raise RecipeError(f"not YAML: {exc}") from exc


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
