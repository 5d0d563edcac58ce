"""Parse single values of the short form, of whatever type lm-eval's parser gave them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge_plugins.errors import RecipeError
from merge_plugins.recipe import parsing, references
from merge_plugins.recipe.data import Data, from_setting
from merge_plugins.recipe.files import exists
from merge_plugins.recipe.references import Reading, Resolved
from merge_plugins.recipe.task import Task
from merge_plugins.recipe.task import from_setting as read_task

SEPARATOR = re.compile(r"(?<!\+)\+(?!\+)")
"""A '+' between two models; '++' stands between a model and its adapter."""
NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE]-?\d+)?"
WEIGHTED = re.compile(rf"(.+?)\s*:\s*({NUMBER}%?)")
"""``MODEL:WEIGHT``; a ``:`` before anything but a number belongs to the model."""
MISTYPED = re.compile(rf"([^:=*]+?)\s*[=* ]\s*({NUMBER})|({NUMBER})\s*\*\s*([^:=*]+)")
"""``MODEL=WEIGHT``, ``WEIGHT*MODEL`` and the like, which would be models of that name."""


def models(given: Any, reading: Reading) -> list[dict[str, Any]]:
    """Parse models=, in any of its forms, into entries of a recipe."""
    given = parsed(given)
    if isinstance(given, Mapping) and "model" not in given:
        own = {ref: v if isinstance(v, Mapping) else {"weight": v} for ref, v in given.items()}
        given = [{"model": ref, "parameters": parameters} for ref, parameters in own.items()]
    if isinstance(given, list | tuple):
        return [_entry(item, reading) for item in given]
    items = [given] if isinstance(given, Mapping) else SEPARATOR.split(text(given))
    return [_entry(item, reading) for item in items]


def _entry(item: Any, reading: Reading) -> dict[str, Any]:
    """Parse one model, text with an optional weight or a mapping, into an entry of a recipe."""
    if isinstance(item, Mapping):
        kept = ("model", "base_model", "parameters", "data", "task")
        own = {key: value for key, value in item.items() if key not in kept}
        parameters = {**(item.get("parameters") or {}), **own}
        calibrated = from_setting(item.get("data"), Path())
        named = {"model": reference(item.get("model"), reading), "parameters": parameters}
        if item.get("base_model") is not None:
            named["base_model"] = reference(item["base_model"], reading)
        given = {"data": calibrated, "task": read_task(item.get("task"))}
        return {**named, **{key: value for key, value in given.items() if value}}
    item = text(item)
    if not item:
        raise RecipeError("an item of models= is empty; write models=a+b or models=a:0.6+b:0.4")
    weighted = WEIGHTED.fullmatch(item)
    path, weight = weighted.groups() if weighted else (item, None)
    if not weighted and not exists(item) and (mistyped := MISTYPED.fullmatch(item)):
        model, number = mistyped[1] or mistyped[4], mistyped[2] or mistyped[3]
        raise RecipeError(f"{item}: a weight follows ':'; write {model}:{number}")
    return {"model": reference(path, reading), "parameters": {"weight": weight} if weight else {}}


def data(given: Any) -> list[Data | None]:
    """Parse data=: one value for all models, or one for each; paths are relative to the cwd."""
    given = parsed(given)
    if isinstance(given, str) and "+" in given and not exists(given):
        given = given.split("+")
    each = list(given) if isinstance(given, list | tuple) else [given]
    return [from_setting(one, Path()) for one in each]


def tasks(given: Any) -> list[Task | None]:
    """Parse task=: one for each model."""
    given = parsed(given)
    if isinstance(given, str):
        given = given.split("+")
    return [read_task(one) for one in (given if isinstance(given, list | tuple) else [given])]


def plugins(given: Any) -> list[str]:
    """Parse plugin=: the Python files of plugins."""
    given = parsed(given) if is_set(given) else []
    if isinstance(given, str) and "+" in given and not exists(given):
        given = given.split("+")
    return [text(one) for one in (given if isinstance(given, list | tuple) else [given])]


def reference(given: Any, reading: Reading) -> Resolved:
    """Parse a reference to a model; ``reading``: that of the current folder."""
    if isinstance(given, int | float | complex | str):
        given = text(given)
        model, plus, adapter = given.partition("++")
        if plus and not exists(given):
            given = {"model": model, "lora": adapter}
    return Resolved(references.reference(given, reading))


def parsed(given: Any) -> Any:
    """Parse text that is JSON or a YAML list or mapping; return any other value unchanged."""
    if isinstance(given, str) and given.strip()[:1] in ("[", "{"):
        return parsing.from_yaml(given)
    return given


def text(given: Any) -> str:
    """Convert a value back to the name or path that the user typed."""
    return repr(given).strip("()") if isinstance(given, complex) else str(given).strip()


def is_set(given: Any) -> bool:
    """Check whether an argument is set; older lm-eval passes None as text."""
    return given is not None and given != "None"
