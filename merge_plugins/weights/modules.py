"""List the modules of a sentence-transformers model: what `modules.json` names beside the weights.

A model is a transformer, usually in the folder itself, and modules in folders below it: pooling, a
projection, normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.files import parsed_json

T = TypeVar("T")
NAME = "modules.json"
OWN = "sentence_transformers."
"""Beginning of the types of modules that sentence-transformers has itself."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of a module's file of weights; the first that exists is read."""
LOADED_FROM_NOTHING = ("Dropout", "Normalize")
"""Own modules that need no file: git keeps no empty folder, so a clone lacks ``2_Normalize``."""


@dataclass(frozen=True)
class Module:
    """One module of a sentence-transformers model."""

    path: str
    """Its folder below the model's; "" for the model's own."""
    type: str
    """Its class, as a dotted path."""

    @property
    def kind(self) -> str:
        """Name of its class: Transformer, Pooling, Dense, Normalize, ..."""
        return self.type.rpartition(".")[2]

    @property
    def needs_files(self) -> bool:
        """Whether sentence-transformers cannot load it from an empty or absent folder."""
        return self.type.startswith(OWN) and self.kind not in LOADED_FROM_NOTHING


def sentence_modules(folder: Path) -> tuple[Module, ...]:
    """Read the modules of a model in their order; none, if it is not of sentence-transformers.

    Raises `CheckpointError` for a file that is no list of modules in folders below the model's.
    """
    file = folder / NAME
    if not file.is_file():
        return ()
    modules = parsed_json(file)
    try:
        found = tuple(Module(module["path"], module.get("type", "")) for module in modules)
        texts = [text for module in found for text in (module.path, module.type)]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise TypeError("path and type are texts")
    except (AttributeError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{file} is no list of modules: {exc!r}") from exc
    for module in found:
        if module.path and not _is_below(module.path):
            raise CheckpointError(
                f"{folder}: modules.json names {module.path!r}, which is no folder in this one"
            )
    return found


def weight_files_below(folder: Path) -> dict[str, Path]:
    """Find the weights of a model's modules: one file for each folder, by its path in the model.

    A module may have folders of its own, as a router has for its routes.
    """
    found: dict[str, Path] = {}
    for module in sentence_modules(folder):
        for name in WEIGHTS if module.path else ():
            for file in sorted((folder / module.path).rglob(name)):
                found.setdefault(file.parent.relative_to(folder).as_posix(), file)
    return dict(sorted(found.items()))


def in_module(name: str) -> bool:
    """Whether a tensor is a module's: its name is like ``2_Dense/linear.weight``."""
    return "/" in name


def of_transformer(tensors: Mapping[str, T]) -> dict[str, T]:
    """Select the tensors of the transformer itself."""
    return {name: tensor for name, tensor in tensors.items() if not in_module(name)}


def of_modules(tensors: Mapping[str, T]) -> dict[str, T]:
    """Select the tensors of the modules behind the transformer."""
    return {name: tensor for name, tensor in tensors.items() if in_module(name)}


def _is_below(name: str) -> bool:
    """Whether a path names something below the folder where it starts."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
