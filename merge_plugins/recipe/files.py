"""Parse a recipe file, YAML or JSON, into mappings.

A YAML file may hold several documents, as in mergekit-multi. All but one need a ``name``, by which
any other document can use them as a model. The document without a name, or else the last one, is
the recipe of the file.
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
"""File name of a recipe that this package writes to a folder."""
NAMES = (NAME, "mergekit_config.yml")
"""File names of a recipe in a folder, in order of precedence."""


def find(path: Path) -> Path:
    """Find a recipe file; in a folder, merge.yaml or mergekit_config.yml."""
    if path.is_dir():
        files = [path / name for name in NAMES if (path / name).is_file()]
        if not files:
            raise RecipeError(f"{path} holds no {' or '.join(NAMES)}")
        return files[0]
    if not path.is_file():
        raise RecipeError(f"no recipe file at {path}")
    return path


@dataclass(frozen=True)
class Documents:
    """The parsed documents of a recipe file."""

    main: Mapping[str, Any]
    """The document that is the file's recipe."""
    named: Mapping[str, Mapping[str, Any]]
    """Documents with a name, which other documents can use as a model."""


def read(path: Path) -> Documents:
    """Parse a recipe file; warn about a named document that no other document uses."""
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
    documents = [from_json(text)] if path.suffix == ".json" else list(_each_from_yaml(text))
    for document in documents or [None]:
        if not isinstance(document, dict):
            raise RecipeError(
                f"a recipe is a mapping (merge_method: …, models: …); got {document!r:.80}"
            )
    names = [document["name"] for document in documents if "name" in document]
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise RecipeError(f"each document needs a name of its own; got {name!r}")
    n_unnamed = len(documents) - len(names)
    if n_unnamed > 1:
        raise RecipeError(
            f"{n_unnamed} documents without name: only the last merge may have none; "
            "add name: <word> to the others"
        )
    return documents


def _words(value: Any) -> set[str]:
    """Collect every string in a document, and the part of each before its first '+'."""
    if isinstance(value, str):
        return {value, value.partition("+")[0]}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_words, items))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Prefix every `RecipeError` raised in the block with the path of the recipe file."""
    try:
        yield
    except RecipeError as exc:
        raise type(exc)(f"{path}: {exc}") from exc


def from_yaml(text: str) -> Any:
    """Parse one YAML document; raise `RecipeError` for a duplicate key."""
    documents = list(_each_from_yaml(text))
    if len(documents) > 1:
        raise RecipeError(f"one YAML document is expected here; got {len(documents)}")
    return documents[0] if documents else None


def _each_from_yaml(text: str) -> Iterator[Any]:
    try:
        yield from yaml.load_all(text, _UniqueKeys)
    except yaml.YAMLError as exc:
        raise RecipeError(f"not YAML: {exc}") from exc


def from_json(text: str) -> Any:
    """Parse a JSON value; raise `RecipeError` for a duplicate key."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as exc:
        raise RecipeError(f"not JSON: {exc}") from exc


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys, of which PyYAML would silently drop the first."""

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
