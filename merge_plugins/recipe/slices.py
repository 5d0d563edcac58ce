"""What a merge is stacked from: slices, each some layers of one or more models.

A merge of whole models is one slice of all their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from merge_plugins.recipe.data import Data
from merge_plugins.recipe.parts import WHOLE
from merge_plugins.recipe.references import Reference
from merge_plugins.recipe.settings import Settings, as_yaml, without

Layers: TypeAlias = "tuple[int, int]"
"""A half-open range of a model's layers, from 0."""
Spelled: TypeAlias = "Callable[[Reference | Data], Any]"
"""How models and data are written."""


@dataclass(frozen=True)
class Entry:
    """One model of a slice."""

    ref: Reference
    """An absolute path, a hub id with an optional ``@revision``, or a model computed from such."""
    parameters: Settings = field(default_factory=dict)
    data: Data | None = None
    """Its own calibration data, in place of the recipe's."""
    layers: Layers | None = None
    """Which of its layers are merged; None: all."""

    def as_dict(self, spelled: Spelled) -> dict[str, Any]:
        """Return the entry as YAML holds it; ``spelled`` says how each reference is written."""
        held = {
            "model": spelled(self.ref),
            "layer_range": list(self.layers or ()),
            "parameters": as_yaml(self.parameters),
            "data": self.data and spelled(self.data),
        }
        return {key: value for key, value in held.items() if value}


@dataclass(frozen=True)
class Slice:
    """Layers of a merge that follow each other: the models they come from, and how."""

    models: tuple[Entry, ...]
    """Those that are merged; each gives as many layers."""
    parameters: Settings = field(default_factory=dict)
    base: Entry | None = None
    """The base and its layers, for a method that needs one; as written, only one of its own."""
    part: str = WHOLE
    """The part of the model that it belongs to, mergekit's module."""

    @property
    def inputs(self) -> tuple[Entry, ...]:
        """Every model whose weights are read, the base first."""
        return (*(() if self.base is None else (self.base,)), *self.models)

    def as_dict(
        self,
        spelled: Spelled,
        base_model: Reference | None,
        shared: Settings,
    ) -> dict[str, Any]:
        """Return the slice as YAML holds it, without the recipe's base and ``shared`` settings."""
        sources = self.models if self.base is None else (*self.models, self.base)
        own_base = self.base if self.base and self.base.ref != base_model else None
        held = {
            "sources": [model.as_dict(spelled) for model in sources],
            "base_model": own_base and spelled(own_base.ref),
            "parameters": as_yaml(without(self.parameters, shared)),
        }
        return {key: value for key, value in held.items() if value}


def part_as_dict(
    pieces: Sequence[Slice],
    spelled: Spelled,
    base_model: Reference | None,
    shared: Settings,
) -> dict[str, Any]:
    """Return a part of a recipe as YAML holds it: models where they are whole, else slices."""
    if is_stack(pieces):
        return {"slices": [piece.as_dict(spelled, base_model, shared) for piece in pieces]}
    (piece,) = pieces
    own = as_yaml(without(piece.parameters, shared))
    models = {"models": [model.as_dict(spelled) for model in piece.models]}
    return {**models, "parameters": own} if own else models


def is_stack(pieces: Sequence[Slice]) -> bool:
    """Whether the slices of a part are layers of models, not whole ones."""
    return len(pieces) > 1 or any(model.layers for model in pieces[0].inputs)
