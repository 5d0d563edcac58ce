"""Slices that a merge is stacked from: each holds layers of one or more models.

A merge of whole models has one slice with all their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from merge_plugins.recipe.data import Data
from merge_plugins.recipe.parts import WHOLE
from merge_plugins.recipe.references import Reference
from merge_plugins.recipe.settings import Settings, as_yaml, without
from merge_plugins.recipe.task import Task

Layers: TypeAlias = "tuple[int, int]"
"""A half-open range of a model's layers, counted from 0."""
Write: TypeAlias = "Callable[[Reference | Data], Any]"
"""Converts a reference or calibration data to its YAML value."""


@dataclass(frozen=True)
class Entry:
    """One model of a slice, with its own settings."""

    ref: Reference
    """An absolute path, a hub id with an optional ``@revision``, or a computed model."""
    parameters: Settings = field(default_factory=dict)
    data: Data | None = None
    """Calibration data of this model, in place of the recipe's."""
    layers: Layers | None = None
    """Range of layers to merge; None: all."""
    task: Task | None = None
    """What the model's head answers; the heads of a merge with tasks are not merged."""

    def as_dict(self, write: Write) -> dict[str, Any]:
        """Return the entry as YAML holds it; ``write`` spells each reference."""
        mapping = {
            "model": write(self.ref),
            "layer_range": list(self.layers or ()),
            "parameters": as_yaml(self.parameters),
            "data": self.data and write(self.data),
            "task": self.task and self.task.as_setting(),
        }
        return {key: value for key, value in mapping.items() if value}


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of a merge, with the models and settings they are merged from."""

    models: tuple[Entry, ...]
    """Models to merge; each contributes the same number of layers."""
    parameters: Settings = field(default_factory=dict)
    base: Entry | None = None
    """Base and its layers, if the method uses one; before normalisation, only a base of its own."""
    part: str = WHOLE
    """Part of the model that the slice belongs to, mergekit's module."""

    @property
    def inputs(self) -> tuple[Entry, ...]:
        """List every model whose weights are read, the base first."""
        return (*(() if self.base is None else (self.base,)), *self.models)

    def as_dict(
        self,
        write: Write,
        base_model: Reference | None,
        shared: Settings,
    ) -> dict[str, Any]:
        """Convert to a YAML mapping, without the recipe's base and ``shared`` settings."""
        sources = self.models if self.base is None else (*self.models, self.base)
        own_base = self.base if self.base and self.base.ref != base_model else None
        mapping = {
            "sources": [model.as_dict(write) for model in sources],
            "base_model": own_base and write(own_base.ref),
            "parameters": as_yaml(without(self.parameters, shared)),
        }
        return {key: value for key, value in mapping.items() if value}


def part_as_dict(
    slices: Sequence[Slice],
    write: Write,
    base_model: Reference | None,
    shared: Settings,
) -> dict[str, Any]:
    """Convert a part of a recipe to a YAML mapping with ``models`` if whole, else ``slices``."""
    if is_stack(slices):
        return {"slices": [slice_.as_dict(write, base_model, shared) for slice_ in slices]}
    (slice_,) = slices
    own = as_yaml(without(slice_.parameters, shared))
    models = {"models": [model.as_dict(write) for model in slice_.models]}
    return {**models, "parameters": own} if own else models


def is_stack(slices: Sequence[Slice]) -> bool:
    """Check whether the slices of a part take layers of models, not whole models."""
    return len(slices) > 1 or any(model.layers for model in slices[0].inputs)
