"""Name what varies in a recipe by where it stands: ``weight[math]``, ``density[math, 1]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeAlias

Path_: TypeAlias = tuple[str, ...]
"""The keys that lead to a value in a recipe's mapping."""
SILENT = ("models", "parameters", "value", "slices", "sources", "modules")
"""Keys that say nothing beside the others."""


def name_of(path: Path_) -> str:
    """Name a value: its parameter, then in brackets where it stands."""
    head = path.index("parameters") + 1 if "parameters" in path[:-1] else _last_word(path)
    where = [key for i, key in enumerate(path) if i != head and key not in SILENT]
    return f"{path[head]}[{', '.join(where)}]" if where else path[head]


def _last_word(path: Path_) -> int:
    return max(i for i, key in enumerate(path) if not key.isdigit() or i == 0)


def steps_of(items: Sequence[Any]) -> list[str]:
    """Name the items of a list: by model, or the filter of a rule, else by place."""
    names = [_named(item) or str(i) for i, item in enumerate(items)]
    return [name if names.count(name) == 1 else str(i) for i, name in enumerate(names)]


def _named(item: Any) -> str:
    if not isinstance(item, Mapping):
        return ""
    model, pattern = item.get("model"), item.get("filter")
    if isinstance(model, Mapping):
        model = model.get("model")
    if isinstance(model, str):
        return PurePath(model).name
    return pattern if isinstance(pattern, str) else ""
