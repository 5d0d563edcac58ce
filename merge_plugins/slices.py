"""What a merge is stacked from: slices, each some layers of one or more models.

A merge of whole models is one slice of all their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from merge_plugins.checkpoint import read_json
from merge_plugins.data import Data
from merge_plugins.modules import REST, WHOLE
from merge_plugins.references import Delta, Lora, Rebased, Reference, home
from merge_plugins.settings import Setting

Layers: TypeAlias = "tuple[int, int]"
"""A half-open range of a model's layers, from 0."""
Spelled: TypeAlias = "Callable[[Reference | Data], Any]"
"""How models and data are written."""
DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What families call the number of layers in their config."""


@dataclass(frozen=True)
class Model:
    """One model of a slice."""

    ref: Reference
    """An absolute path, a hub id with an optional ``@revision``, or a model computed from such."""
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    data: Data | None = None
    """Its own calibration data, in place of the recipe's."""
    layers: Layers | None = None
    """Which of its layers are merged; None: all."""

    def as_dict(self, spelled: Spelled) -> dict[str, Any]:
        """Return the entry as YAML holds it; ``spelled`` says how each reference is written."""
        held = {
            "model": spelled(self.ref),
            "layer_range": list(self.layers or ()),
            "parameters": dict(self.parameters),
            "data": self.data and spelled(self.data),
        }
        return {key: value for key, value in held.items() if value}


@dataclass(frozen=True)
class Slice:
    """Layers of a merge that follow each other: the models they come from, and how."""

    models: tuple[Model, ...]
    """Those that are merged; each gives as many layers."""
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    base: Model | None = None
    """The base and its layers, for a method that needs one; as written, only one of its own."""
    part: str = WHOLE
    """The part of the model that it belongs to, mergekit's module."""

    @property
    def inputs(self) -> tuple[Model, ...]:
        """Every model whose weights are read, the base first."""
        return (*(() if self.base is None else (self.base,)), *self.models)

    def as_dict(
        self,
        spelled: Spelled,
        base_model: Reference | None,
        shared: Mapping[str, Setting],
    ) -> dict[str, Any]:
        """Return the slice as YAML holds it, without the recipe's base and ``shared`` settings."""
        sources = self.models if self.base is None else (*self.models, self.base)
        own_base = self.base if self.base and self.base.ref != base_model else None
        held = {
            "sources": [model.as_dict(spelled) for model in sources],
            "base_model": own_base and spelled(own_base.ref),
            "parameters": {k: v for k, v in self.parameters.items() if k not in shared},
        }
        return {key: value for key, value in held.items() if value}


def part_as_dict(
    pieces: Sequence[Slice],
    spelled: Spelled,
    base_model: Reference | None,
    shared: Mapping[str, Setting],
) -> dict[str, Any]:
    """Return a part of a recipe as YAML holds it: models where they are whole, else slices."""
    if is_stack(pieces):
        return {"slices": [piece.as_dict(spelled, base_model, shared) for piece in pieces]}
    (piece,) = pieces
    own = {key: value for key, value in piece.parameters.items() if key not in shared}
    models = {"models": [model.as_dict(spelled) for model in piece.models]}
    return {**models, "parameters": own} if own else models


def is_stack(pieces: Sequence[Slice]) -> bool:
    """Whether the slices of a part are layers of models, not whole ones."""
    return len(pieces) > 1 or any(model.layers for model in pieces[0].inputs)


def depth_key(config: Mapping[str, Any], keys: Sequence[str] | None = None) -> str | None:
    """Return what a config calls its number of layers, of these names or of the usual ones."""
    return next((key for key in keys or DEPTH if isinstance(config.get(key), int)), None)


def depth(ref: Reference) -> int | None:
    """Return how many layers a model has, by the files at hand; None if they do not say."""
    if not isinstance(ref, str | Lora | Delta | Rebased):
        pieces = next((ref.parts[part] for part in (WHOLE, *REST) if part in ref.parts), ())
        if not pieces or not is_stack(pieces):
            return depth(ref.donor)
        lengths = [n_layers(piece.inputs) for piece in pieces]
        return None if None in lengths else sum(length or 0 for length in lengths)
    config = _config(home(ref))
    config = {**config.get("text_config", {}), **config}
    key = depth_key(config)
    return config[key] if key else None


def n_layers(models: Iterable[Model]) -> int | None:
    """Return how many layers each of these models gives, by the first that says so."""
    for model in models:
        found = depth(model.ref) if model.layers is None else model.layers[1] - model.layers[0]
        if found is not None:
            return found
    return None


def is_whole(model: Model) -> bool:
    """Whether all layers are taken, as far as the files at hand can tell."""
    return model.layers is None or model.layers == (0, depth(model.ref))


def _config(ref: str) -> Mapping[str, Any]:
    """Return a stored model's config without downloading anything; empty if it is not here."""
    file = Path(ref) / "config.json"
    if not file.is_file() and not Path(ref).is_absolute():
        from huggingface_hub import try_to_load_from_cache

        repo, _, revision = ref.partition("@")
        cached = try_to_load_from_cache(repo, "config.json", revision=revision or None)
        file = Path(cached) if isinstance(cached, str) else file
    return read_json(file) if file.is_file() else {}
