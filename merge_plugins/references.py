"""How a recipe names a model: a path, or a hub id with an optional revision."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge_plugins.errors import RecipeError

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")


def reference(given: Any, folder: Path) -> str:
    """Return a model reference: an absolute path, or a hub id as written.

    A path that exists wins over a hub id of the same name; it may hold any character.
    """
    text = _reference_text(given)
    path = Path(os.path.normpath(Path.cwd() / folder / _expanded(text)))
    if path.exists():
        return str(path)
    if "+" in text:
        raise RecipeError(f"{text}: LoRA sources: not supported yet; merge the adapter first")
    name, _, revision = text.partition("@")
    if "@" in revision:
        raise RecipeError(f"{text}: a model reference has one '@', before its revision")
    if revision and (folder / _expanded(name)).exists():
        raise RecipeError(f"{text}: a local folder has no revision; write {name}")
    return text if HUB_ID.fullmatch(text) else str(path)


def _expanded(text: str) -> Path:
    return Path(text).expanduser() if Path(text).parts[:1] == ("~",) else Path(text)


def _reference_text(given: Any) -> str:
    """Return ``path[@revision]`` of either of mergekit's two forms of a reference."""
    outer = given if isinstance(given, Mapping) else {"model": given}
    inner = outer["model"] if isinstance(outer.get("model"), Mapping) else outer
    refused = (set(outer) | set(inner)) - {"model", "path", "revision"}
    if refused:
        raise RecipeError(
            f"{min(map(str, refused))} of a model: not supported yet; "
            "a model is a path, a hub id, or {path, revision}"
        )
    path = inner.get("path", inner.get("model"))
    if not isinstance(path, str) or not path:
        raise RecipeError(
            f"a model is a path or a hub id, in quotes if it is a number; got {path!r}"
        )
    revision = inner.get("revision")
    return path if revision is None else f"{path}@{revision}"
