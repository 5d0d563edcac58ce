"""Name what varies in a recipe by where it stands: ``weight[math]``, ``density[math, 1]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def plain(value: Any) -> str:
    """Write a value as a recipe may give it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Name the settings that are not the same in all recipes: those of each, by name.

    ``recipes``: mappings as a file holds them. Which models are merged is the setting ``models``; a
    parameter that is the same for all models of each recipe is named once. What only one method
    has, at one value, is no difference beside the method.
    """
    merged = [_models(recipe) for recipe in recipes]
    found = [
        _shared(dict(_leaves(recipe, ())), len(models))
        for recipe, models in zip(recipes, merged, strict=True)
    ]
    if len({*map(tuple, merged)}) > 1:
        found = [{"models": "+".join(m), **each} for m, each in zip(merged, found, strict=True)]
    names = dict.fromkeys(name for each in found for name in each)
    methods = [recipe.get("merge_method") for recipe in recipes]
    differ = [name for name in names if _differs(name, found, methods)]
    return [{name: each[name] for name in differ if name in each} for each in found]


def _differs(name: str, found: Sequence[Mapping[str, Any]], methods: Sequence[Any]) -> bool:
    """Whether recipes that have a setting differ in it, or only some of one method have it."""
    values = [each[name] for each in found if name in each]
    having = {method for each, method in zip(found, methods, strict=True) if name in each}
    lacking = {method for each, method in zip(found, methods, strict=True) if name not in each}
    return any(value != values[0] for value in values) or bool(having & lacking)


def _leaves(value: Any, path: Path_) -> Iterator[tuple[str, Any]]:
    """Iterate over the settings of a recipe, but for its models."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("model", "merge_method"):
                yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for step, item in zip(steps_of(value), value, strict=True):
            yield from _leaves(item, (*path, step))
    elif path[-1:] != ("models",):
        yield name_of(path), value


def _models(recipe: Any) -> list[str]:
    """List the models of a recipe, without their folders."""
    if not isinstance(recipe, Mapping):
        return []
    entries = [entry for key in ("models", "sources") for entry in recipe.get(key) or ()]
    own = [_named(entry if isinstance(entry, Mapping) else {"model": entry}) for entry in entries]
    inner = [*(recipe.get("slices") or ()), *(recipe.get("modules") or {}).values()]
    return list(dict.fromkeys([*own, *(name for part in inner for name in _models(part))]))


def _shared(settings: Mapping[str, Any], n_models: int) -> dict[str, Any]:
    """Name a parameter of each model once if all models have the same value."""
    groups: dict[str, list[str]] = {}
    for name in settings:
        groups.setdefault(name.partition("[")[0], []).append(name)
    shown: dict[str, Any] = {}
    for head, names in groups.items():
        values = [settings[name] for name in names]
        same = len(names) == n_models and all(value == values[0] for value in values)
        shown |= {head: values[0]} if same else {name: settings[name] for name in names}
    return shown
