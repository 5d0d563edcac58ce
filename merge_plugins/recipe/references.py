"""Parse references to models: stored ones, or computed from stored ones while they are read.

    path, org/name[@revision]           a folder or a hub id: a plain `str`
    model+adapter, {model, lora}        a model with a LoRA adapter added: `Lora`
    {model, delta}                      a model published as its difference from another: `Delta`
    merge.yaml, {merge_method, …}       a merge: another `Recipe`; also the name of a document
    {model, base_model}                 an expert fine-tuned from another base: `Rebased`

The values of these mappings are references too, or mergekit's ``{path, revision}``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeAlias

from merge_plugins.errors import RecipeError
from merge_plugins.recipe.files import path_of

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")
RECIPE_FILES = (".yaml", ".yml", ".json")
MERGES = 100
"""Recipes that may be read for one merge."""


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
    """An expert fine-tuned from another base than the recipe's.

    Its weights are the recipe's base plus the difference between `model` and `base_model`.
    """

    model: Reference
    base_model: Reference

    def __str__(self) -> str:
        return f"{self.model} (from {self.base_model})"


class Nested(Protocol):
    """Protocol of a `Recipe` that is used as a model."""

    def __hash__(self) -> int: ...

    @property
    def donor(self) -> Reference:
        """The model that provides config and tensor names."""

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every distinct model whose weights are read."""

    def as_dict(self, shown: Callable[[str], str] = str) -> dict[str, Any]:
        """Convert the recipe to its YAML mapping."""


Reference: TypeAlias = "str | Lora | Delta | Rebased | Nested"
"""A model, stored or computed: hashable, and equal for two spellings of one model."""


@dataclass(frozen=True)
class Resolved:
    """A reference that is already parsed, relative to a folder of its own."""

    ref: Reference


@dataclass(frozen=True)
class Reading:
    """The context in which paths and names of a recipe are resolved."""

    folder: Path
    """Folder that relative paths start from."""
    load: Callable[[Path, Reading], Nested]
    """Loads a recipe file that is used as a model."""
    nested: Callable[[Mapping[str, Any], Reading], Nested]
    """Parses a recipe mapping that is used as a model."""
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named documents of the recipe file."""
    within: tuple[tuple[Path, str], ...] = ()
    """(file, document name) of each recipe being read, the current one last; detects cycles."""
    counter: Iterator[int] = field(default_factory=itertools.count)
    """Counts the recipes of this reading, each wherever it is a model."""

    def count(self) -> None:
        """Count one more recipe; raise `RecipeError` if there are too many.

        A dozen documents that each name the one before five times are 5^12 merges.
        """
        if next(self.counter) >= MERGES:
            raise RecipeError(
                f"a merge is made of at most {MERGES} merges, each counted wherever it is a "
                "model; save some of them with 'merge-plugins save', and name their folders"
            )

    def inside(self, file: Path, document: str = "") -> Reading:
        """Enter a file or one of its documents; raise `RecipeError` if it is being read already."""
        within = (*self.within, (file, document))
        if within[-1] in self.within:
            way = " → ".join(name or str(file) for file, name in within)
            raise RecipeError(f"a recipe cannot be a model of itself: {way}")
        return replace(self, within=within)


def reference(given: Any, reading: Reading) -> Reference:
    """Parse the value of a recipe's ``model:``."""
    if isinstance(given, Resolved):
        return given.ref
    if isinstance(given, Mapping):
        return _of_mapping(given, reading)
    if not isinstance(given, str) or not given:
        raise RecipeError(
            f"a model is a path or a hub id, in quotes if it is a number; got {given!r}"
        )
    if given in reading.documents:
        file, _ = reading.within[-1]
        return _of_mapping(reading.documents[given], reading.inside(file, given))
    path = path_of(given, reading.folder)
    if path.is_dir():
        return str(path)
    if path.suffix in RECIPE_FILES:
        return reading.load(path, reading)
    model, plus, adapter = given.partition("+")
    if path.exists() or not plus:
        return stored(given, reading.folder)
    if "+" in adapter:
        raise RecipeError(f"{given}: one '+' adds an adapter; write {{model: …, lora: …}} for more")
    return Lora(reference(model, reading), stored(adapter, reading.folder))


def stored(given: Any, folder: Path) -> str:
    """Resolve a reference to files: an absolute path, or a hub id as written.

    An existing path, of any characters, takes precedence over a hub id of the same name.
    """
    if isinstance(given, Mapping):
        _check_keys(given, ("path", "revision"))
        revision, name = given.get("revision"), given.get("path")
        if revision is not None and not isinstance(name, str):
            raise RecipeError(f"revision belongs to a hub id; got it with {name!r}")
        given = name if revision is None else f"{name}@{revision}"
    if not isinstance(given, str) or not given:
        raise RecipeError(
            f"a model is a path or a hub id, in quotes if it is a number; got {given!r}"
        )
    path = path_of(given, folder)
    if path.exists():
        return str(path)
    name, _, revision = given.partition("@")
    if "@" in revision:
        raise RecipeError(f"{given}: a model reference has one '@', before its revision")
    if revision and path_of(name, folder).exists():
        raise RecipeError(f"{given}: a local folder has no revision; write {name}")
    return given if HUB_ID.fullmatch(given) else str(path)


def _of_mapping(given: Mapping[str, Any], reading: Reading) -> Reference:
    if "merge_method" in given:
        return reading.nested(given, reading)
    if "path" in given:
        return stored(given, reading.folder)
    _check_keys(given, ("model", "revision", "lora", "delta", "base_model"))
    model = given.get("model")
    if given.get("revision") is not None:
        model = {"path": model, "revision": given["revision"]}
    model = reference(model, reading)
    added = {key: stored(given[key], reading.folder) for key in ("lora", "delta") if given.get(key)}
    if len(added) > 1:
        raise RecipeError("a model has lora: or delta:, not both; nest one in the other's model:")
    for key, ref in added.items():
        model = Lora(model, ref) if key == "lora" else Delta(model, ref)
    if not given.get("base_model"):
        return model
    base = reference(given["base_model"], reading)
    if model == base:
        raise RecipeError(f"{model} is given as its own base_model; name what it was tuned from")
    return Rebased(model, base)


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    refused = [str(key) for key in given if key not in known]
    if refused:
        raise RecipeError(
            f"{min(refused)} of a model: not supported; a model is a path, a hub id, "
            "{model, revision}, {model, lora}, {model, delta}, {model, base_model} or a whole "
            "recipe {merge_method, …}"
        )


def written(ref: Reference, shown: Callable[[str], str] = str) -> Any:
    """Convert a reference to its YAML value; ``shown`` converts every path and hub id in it."""
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


def titles(refs: Sequence[Reference]) -> list[str]:
    """Name models for people to read: without their folders, unless two would have one name."""
    short = [_title(ref) for ref in refs]
    return [
        title if short.count(title) == 1 else str(ref)
        for ref, title in zip(refs, short, strict=True)
    ]


def _title(ref: Reference) -> str:
    if isinstance(ref, str):
        return PurePath(ref).name or ref
    if isinstance(ref, Lora | Delta):
        added = ref.adapter if isinstance(ref, Lora) else ref.delta
        return f"{_title(ref.model)}+{PurePath(added).name}"
    return _title(ref.model) if isinstance(ref, Rebased) else str(ref).partition("(")[0]


def files(ref: Reference) -> tuple[str, ...]:
    """List the folders and hub ids that a model's files come from, in order, each once."""
    if isinstance(ref, str):
        return (ref,)
    if isinstance(ref, Lora | Delta):
        return (*files(ref.model), ref.adapter if isinstance(ref, Lora) else ref.delta)
    inner = (ref.model, ref.base_model) if isinstance(ref, Rebased) else ref.references
    return tuple(dict.fromkeys(file for one in inner for file in files(one)))


def home(ref: Reference) -> str:
    """Return the folder or hub id with a model's configuration and code."""
    if isinstance(ref, str):
        return ref
    if isinstance(ref, Lora | Rebased):
        return home(ref.model)
    return ref.delta if isinstance(ref, Delta) else home(ref.donor)
