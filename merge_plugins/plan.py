"""Which stored tensors make each merged tensor, with which parameters. Reads headers only.

Everything that can be wrong with a merge is found here, before the first weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from merge_plugins import parameters
from merge_plugins.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.hub import resolve
from merge_plugins.recipe import Model, Recipe
from merge_plugins.registry import Method, registry
from merge_plugins.vocabulary import check_same_vocabulary

DERIVED = ("rotary_emb.inv_freq", ".attn.bias", ".masked_bias", ".attention.bias", "position_ids")
"""Endings of buffers that old checkpoints store and every model class computes anew."""
MERGEABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the merge: where it comes from and what is done."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """What the merged tensor is rounded to."""
    base: StoredTensor | None
    experts: tuple[StoredTensor, ...]
    kernel: Any | None
    """The method, built for this tensor; None: a buffer, copied because all models agree on it."""
    parameters: Mapping[str, Any]

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """Every input, the base first."""
        return (*(() if self.base is None else (self.base,)), *self.experts)


@dataclass(frozen=True)
class Plan:
    """A validated merge."""

    recipe: Recipe
    method: Method
    checkpoints: Mapping[str, Checkpoint]
    tensors: Mapping[str, PlannedTensor]

    @property
    def donor(self) -> Checkpoint:
        """The model that gives config and generation config, and names the tensors."""
        return self.checkpoints[self.recipe.donor]

    @property
    def experts(self) -> tuple[str, ...]:
        """References of the models that are merged, in the user's order."""
        return tuple(model.ref for model in self.recipe.experts)

    @cached_property
    def bytes_read(self) -> int:
        """Bytes of all sources."""
        return sum(_bytes(s.shape, s.dtype) for t in self.tensors.values() for s in t.stored)

    @cached_property
    def bytes_merged(self) -> int:
        """Bytes of the merge."""
        return sum(_bytes(t.shape, t.dtype) for t in self.tensors.values())

    def __str__(self) -> str:
        """What is merged and what it costs, in one line."""
        n = len(self.experts)
        return (
            f"{self.method.name} of {n} model{'s' * (n != 1)}: {len(self.tensors)} tensors, "
            f"{_size(self.bytes_merged)} merged from {_size(self.bytes_read)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return inputs and resolved parameters of every merged tensor, for JSON."""
        models = ([self.recipe.base_model] if self.method.needs_base else []) + [*self.experts]
        return {
            "recipe": self.recipe.as_dict(),
            "digest": self.recipe.digest,
            "tensors": {
                name: {
                    "shape": list(tensor.shape),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "inputs": [
                        {"model": model, "tensor": stored.name, "file": stored.file.name}
                        for model, stored in zip(models, tensor.stored, strict=True)
                    ],
                    "parameters": dict(tensor.parameters),
                }
                for name, tensor in self.tensors.items()
            },
        }


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def plan(recipe: Recipe) -> Plan:
    """Check a recipe against its models and say how each tensor is made."""
    method = registry().get(recipe.merge_method)
    parameters.validate(method, recipe)
    checkpoints = {ref: open_checkpoint(ref) for ref in recipe.references}
    names = _Names(checkpoints, recipe.donor)
    if recipe.tokenizer_source is not None:
        folders = [checkpoint.path for checkpoint in checkpoints.values()]
        check_same_vocabulary([*folders, resolve(recipe.tokenizer_donor)])
    unmatched = parameters.unmatched_filters(recipe, names)
    if unmatched:
        raise RecipeError(
            f"filter {unmatched[0]!r} is part of no tensor's name. Names look like "
            f"{next(iter(names))!r}; run 'merge-plugins plan' without the filter to see all."
        )
    layers = 1 + max((layer for layer in map(layer_of, names) if layer is not None), default=0)
    tensors = {name: _planned(recipe, method, names, name, layers) for name in names}
    return Plan(recipe, method, checkpoints, tensors)


def layer_of(name: str) -> int | None:
    """Return the layer a tensor belongs to: the first number in its name, if it has one."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def depth(layer: int | None, layers: int) -> float:
    """Return where a gradient is read for a layer: 0 first, 1 last; weights outside any layer at 0.

    mergekit's rule: a model of one layer is read at 1.
    """
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


def _planned(
    recipe: Recipe, method: Method, names: _Names, name: str, layers: int
) -> PlannedTensor:
    base = names.stored(name, recipe.base_model) if method.needs_base else None
    models: tuple[Model, ...] = recipe.experts
    experts = tuple(names.stored(name, model.ref) for model in models)
    first = base or experts[0]
    if not first.dtype.is_floating_point or name.endswith(DERIVED):
        return PlannedTensor(name, first.shape, first.dtype, base, experts, None, {})
    for stored in (first, *experts):
        if stored.dtype not in MERGEABLE:
            raise MismatchError(f"{stored.file}: {name} is {stored.dtype}, which cannot be merged")
    dtype = getattr(torch, recipe.out_dtype or recipe.dtype or "", first.dtype)
    where = name, depth(layer_of(name), layers)
    resolved = parameters.resolved(method, recipe, models, *where)
    kernel = parameters.build(method, recipe, models, *where)
    return PlannedTensor(name, first.shape, dtype, base, experts, kernel, resolved)


class _Names(Mapping[str, StoredTensor]):
    """The merge's tensor names, which every model must have: those of the donor."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint], donor: str) -> None:
        self._checkpoints, self._donor = checkpoints, checkpoints[donor]
        self._names = [n for n in self._donor if self._everywhere(n) or not n.endswith(DERIVED)]
        for ref in checkpoints:
            for name in self._names:
                self._check_shape(self.stored(name, ref), ref)
            self._check_extra(ref)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._donor[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def stored(self, name: str, ref: str | None) -> StoredTensor:
        """One model's tensor of that name; a tied head reads the embedding it is tied to."""
        checkpoint = self._checkpoints[str(ref)]
        if name in checkpoint:
            return checkpoint[name]
        embedding = _tied_to(name, self._donor[name].shape, checkpoint)
        if embedding is not None:
            return embedding
        raise MismatchError(
            f"{name} is in {self._donor.ref} but not in {ref}. Both must be fine-tunes of one "
            "model; a model saved without some weights cannot be merged."
        )

    def _everywhere(self, name: str) -> bool:
        return all(name in checkpoint for checkpoint in self._checkpoints.values())

    def _check_shape(self, stored: StoredTensor, ref: str) -> None:
        wanted = self._donor.get(stored.name, stored)
        if stored.shape != wanted.shape:
            hint = " Their vocabularies differ." if stored.shape[1:] == wanted.shape[1:] else ""
            raise MismatchError(
                f"{stored.name} is {list(wanted.shape)} in {self._donor.ref} but "
                f"{list(stored.shape)} in {ref} ({stored.file.name}).{hint} "
                "Models to merge must be fine-tunes of one base with equal shapes."
            )

    def _check_extra(self, ref: str) -> None:
        for name, stored in self._checkpoints[ref].items():
            if name in self._donor or name.endswith(DERIVED):
                continue
            embedding = _tied_to(name, stored.shape, self._checkpoints[ref])
            if embedding is not None and torch.equal(embedding.view(), stored.view()):
                continue  # old files store a tied head twice
            raise MismatchError(
                f"{name} {list(stored.shape)} is in {ref} ({stored.file.name}) but not in "
                f"{self._donor.ref}, which names the merge's tensors. If it is an output head of "
                "its own, set base_model to a model that has one too."
            )


def _tied_to(name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> StoredTensor | None:
    """Return the embedding that a head of that name and shape is tied to, if the model ties it."""
    config = {**checkpoint.config.get("text_config", {}), **checkpoint.config}
    if not config.get("tie_word_embeddings") or shape[:1] != (config.get("vocab_size"),):
        return None
    alike = [t for t in checkpoint.values() if t.shape == shape and t.name != name]
    return alike[0] if len(alike) == 1 else None
