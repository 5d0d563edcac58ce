"""How a recipe names a model: stored somewhere, or computed from stored ones as it is read.

    path, org/name[@revision]           a folder or a hub id: a plain `str`
    model+adapter, {model, lora}        a model with a LoRA adapter added: `Lora`
    {model, delta}                      a model published as its difference from another: `Delta`
    merge.yaml, {merge_method, …}       a merge: another `Recipe`; also the name of a document
    {model, base_model}                 an expert fine-tuned from another base: `Rebased`

The parts of the mappings are references themselves, or mergekit's ``{path, revision}``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from merge_plugins import recipe_file
from merge_plugins.errors import RecipeError

if TYPE_CHECKING:
    from merge_plugins.recipe import Recipe

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")
RECIPE_FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Lora:
    """A model with a LoRA adapter added to its weights; mergekit's ``model+adapter``."""

    model: Reference
    adapter: str
    """Folder or hub id of a PEFT adapter."""

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}"


@dataclass(frozen=True)
class Delta:
    """A model published as weights to add to another model's, as WizardLM-7B-V1.0 was."""

    model: Reference
    delta: str
    """Folder or hub id of the differences."""

    def __str__(self) -> str:
        return f"{self.model} plus {self.delta}"


@dataclass(frozen=True)
class Rebased:
    """An expert whose task vector is what it added to a base of its own.

    Its weights are those of the recipe's base plus that task vector.
    """

    model: Reference
    base_model: Reference

    def __str__(self) -> str:
        return f"{self.model} (from {self.base_model})"


Reference: TypeAlias = "str | Lora | Delta | Rebased | Recipe"
"""Hashable; two spellings of one model are equal."""


def reference(given: Any, folder: Path) -> Reference:
    """Return the model that a recipe's ``model:`` names; paths are relative to ``folder``."""
    if isinstance(given, Mapping):
        return _of_mapping(given, folder)
    if not isinstance(given, str) or not given:
        raise RecipeError(
            f"a model is a path or a hub id, in quotes if it is a number; got {given!r}"
        )
    with recipe_file.document(given) as held:
        if held is not None:
            return _of_mapping(held, folder)
    path = _path(given, folder)
    if path.is_dir():
        return str(path)
    if path.suffix in RECIPE_FILES:
        from merge_plugins.recipe import Recipe  # recipes hold references, which hold recipes

        return Recipe.load(path)
    model, plus, adapter = given.partition("+")
    if path.exists() or not plus:
        return stored(given, folder)
    if "+" in adapter:
        raise RecipeError(f"{given}: one '+' adds an adapter; write {{model: …, lora: …}} for more")
    return Lora(reference(model, folder), stored(adapter, folder))


def stored(given: Any, folder: Path) -> str:
    """Return a reference to files: an absolute path, or a hub id as written.

    A path that exists wins over a hub id of the same name; it may hold any character.
    """
    if isinstance(given, Mapping):
        _check_keys(given, ("path", "revision"))
        revision = given.get("revision")
        given = given.get("path") if revision is None else f"{given.get('path')}@{revision}"
    if not isinstance(given, str) or not given:
        raise RecipeError(
            f"a model is a path or a hub id, in quotes if it is a number; got {given!r}"
        )
    path = _path(given, folder)
    if path.exists():
        return str(path)
    name, _, revision = given.partition("@")
    if "@" in revision:
        raise RecipeError(f"{given}: a model reference has one '@', before its revision")
    if revision and _path(name, folder).exists():
        raise RecipeError(f"{given}: a local folder has no revision; write {name}")
    return given if HUB_ID.fullmatch(given) else str(path)


def _of_mapping(given: Mapping[str, Any], folder: Path) -> Reference:
    if "merge_method" in given:
        from merge_plugins.recipe import Recipe

        return Recipe.from_mapping(given, folder)
    if "path" in given:
        return stored(given, folder)
    _check_keys(given, ("model", "lora", "delta", "base_model"))
    model = reference(given.get("model"), folder)
    added = {key: stored(given[key], folder) for key in ("lora", "delta") if given.get(key)}
    if len(added) > 1:
        raise RecipeError("a model has lora: or delta:, not both; nest one in the other's model:")
    for key, ref in added.items():
        model = Lora(model, ref) if key == "lora" else Delta(model, ref)
    if not given.get("base_model"):
        return model
    base = reference(given["base_model"], folder)
    if model == base:
        raise RecipeError(f"{model} is given as its own base_model; name what it was tuned from")
    return Rebased(model, base)


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    refused = [str(key) for key in given if key not in known]
    if refused:
        raise RecipeError(
            f"{min(refused)} of a model: not supported; a model is a path, a hub id, "
            "{path, revision}, {model, lora}, {model, delta}, {model, base_model} or a whole "
            "recipe {merge_method, …}"
        )


def _path(text: str, folder: Path) -> Path:
    path = Path(text).expanduser() if Path(text).parts[:1] == ("~",) else Path(text)
    return Path(os.path.normpath(Path.cwd() / folder / path))


def written(ref: Reference, shown: Callable[[str], str] = str) -> Any:
    """Return a reference as YAML holds it, every path and hub id in it as ``shown`` says it."""
    if isinstance(ref, str):
        return shown(ref)
    if isinstance(ref, Delta):
        return {"model": written(ref.model, shown), "delta": shown(ref.delta)}
    if isinstance(ref, Lora):
        model, adapter = written(ref.model, shown), shown(ref.adapter)
        if isinstance(model, str) and "+" not in model + adapter:
            return f"{model}+{adapter}"
        return {"model": model, "lora": adapter}
    if isinstance(ref, Rebased):
        own = written(ref.base_model, shown)
        return {"model": written(ref.model, shown), "base_model": own}
    return ref.as_dict(shown)


def files(ref: Reference) -> tuple[str, ...]:
    """Return every folder and hub id whose files a model is made of, in order, each once."""
    if isinstance(ref, str):
        return (ref,)
    if isinstance(ref, Lora | Delta):
        return (*files(ref.model), ref.adapter if isinstance(ref, Lora) else ref.delta)
    inner = (ref.model, ref.base_model) if isinstance(ref, Rebased) else ref.references
    return tuple(dict.fromkeys(file for one in inner for file in files(one)))


def home(ref: Reference) -> str:
    """Return the folder or hub id that has a model's configuration and code."""
    if isinstance(ref, str):
        return ref
    if isinstance(ref, Lora | Rebased):
        return home(ref.model)
    return ref.delta if isinstance(ref, Delta) else home(ref.donor)
