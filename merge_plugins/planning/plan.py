"""Plan a merge: the stored tensors and the parameters of each merged one. Reads headers only.

Everything that can be wrong with a merge is found here, before the first weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.identity import digest
from merge_plugins.planning import parameters
from merge_plugins.planning.config import merged_config
from merge_plugins.planning.embedding import check_modules, embedding_of
from merge_plugins.planning.heads import excluded_heads
from merge_plugins.planning.layouts import in_one_layout
from merge_plugins.planning.names import DERIVED, Names, Origin
from merge_plugins.planning.warn import warn_of_functions, warn_of_stops
from merge_plugins.plugins import Method
from merge_plugins.recipe import Recipe, Reference
from merge_plugins.sources import Source
from merge_plugins.tokenizer import Alignment, aligned
from merge_plugins.tokenizer.vocabulary import vocabulary_size
from merge_plugins.weights import SourceTensor, opened_files
from merge_plugins.weights.modules import of_modules, of_transformer
from merge_plugins.weights.sentence import SentenceModel

MERGEABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the merge: its inputs, and the method that merges them."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Dtype that the merged tensor is rounded to."""
    base: SourceTensor | None
    experts: tuple[SourceTensor, ...]
    kernel: Any | None
    """The method, built for this tensor. None: copied, because the recipe excludes it,
    the method leaves it unchanged, or it is a buffer that is the same in all models."""
    models: tuple[Reference, ...]
    """The model of each of `stored`."""
    parameters: Mapping[str, Any]
    input_dim: int | None = -1
    """`Slot.input_dim`, for a method that needs it."""

    @property
    def stored(self) -> tuple[SourceTensor, ...]:
        """All inputs, the base first."""
        return (*(() if self.base is None else (self.base,)), *self.experts)


@dataclass(frozen=True)
class Plan:
    """A validated merge."""

    recipe: Recipe
    method: Method
    checkpoints: Mapping[Reference, Source]
    tensors: Mapping[str, PlannedTensor]
    config: Mapping[str, Any]
    """The merge's ``config.json``."""
    alignment: Alignment | None = None
    """Match of embedding rows by token; None: rows are merged by position."""
    embedding: SentenceModel | None = None
    """How the merge embeds a text; None, if its models are none of sentence-transformers."""

    @property
    def donor(self) -> Source:
        """The model that gives config and generation config, and names the tensors."""
        return self.checkpoints[self.recipe.donor]

    @property
    def experts(self) -> tuple[Reference, ...]:
        """References of the models that are merged, in the user's order, each once."""
        return tuple(dict.fromkeys(model.ref for model in self.recipe.models))

    def refuse_routing(self, what: str) -> None:
        """Raise `RecipeError` for a routed merge, which ``what`` cannot hold."""
        if self.method.is_routed:
            raise RecipeError(
                f"{self.method.name} weighs its experts for each input, which no {what} can hold. "
                "Use merge_plugins.load_merged or lm_eval --model merged; the shared expert alone "
                "is a recipe of its own method"
            )

    def refuse_changes(self) -> None:
        """Raise `CheckpointError` if a file of weights has changed since it was opened.

        To be called when the last weight has been read and whatever names the merge is computed.
        """
        sources = chain.from_iterable(source.values() for source in self.checkpoints.values())
        planned = chain.from_iterable(tensor.stored for tensor in self.tensors.values())
        for file in opened_files(chain(sources, planned)):
            file.refuse_changes()

    @cached_property
    def bytes_read(self) -> int:
        """Bytes of all sources."""
        return sum(_bytes(s.shape, s.dtype) for t in self.tensors.values() for s in t.stored)

    @cached_property
    def bytes_merged(self) -> int:
        """Bytes of the merge."""
        return sum(_bytes(t.shape, t.dtype) for t in self.tensors.values())

    def __str__(self) -> str:
        """Summarise the merge and its cost in one line."""
        n = len(self.experts)
        return (
            f"{self.method.name} of {n} model{'s' * (n != 1)}: {len(self.tensors)} tensors, "
            f"{readable(self.bytes_merged)} merged from {readable(self.bytes_read)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """List inputs and resolved parameters of every merged tensor, for JSON."""
        return {
            "recipe": self.recipe.as_dict(),
            "digest": digest(self.recipe),
            "tensors": {
                name: {
                    "shape": list(tensor.shape),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "inputs": [
                        {"model": str(model), "tensor": stored.name, "file": stored.file.name}
                        for model, stored in zip(tensor.models, tensor.stored, strict=True)
                    ],
                    "parameters": dict(tensor.parameters),
                }
                for name, tensor in self.tensors.items()
            },
        }


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def readable(n_bytes: int) -> str:
    """Write a number of bytes in MB or GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def make_plan(recipe: Recipe, method: Method, sources: Mapping[Reference, Source]) -> Plan:
    """Decide how each tensor of a merge is made, or raise `MergeError`.

    ``sources``: the models of ``recipe.references``, opened.
    """
    alignment = aligned(recipe, {ref: source.config for ref, source in sources.items()})
    embedding = embedding_of(recipe, {ref: source.path for ref, source in sources.items()})
    heads = excluded_heads(recipe, sources)
    sources, needless = in_one_layout(sources, recipe.donor, is_stack=recipe.is_stack)
    names = Names(sources, recipe, alignment, needless, heads)
    unmatched = parameters.unmatched_filters(recipe, names.spellings)
    if unmatched:
        raise RecipeError(
            f"filter {unmatched[0]!r} is part of no tensor's name. Names look like "
            f"{next(iter(names))!r}; run 'merge-plugins plan' without the filter to see all."
        )
    tensors = {name: _planned(recipe, method, names, origin) for name, origin in names.items()}
    if alignment is not None:
        alignment.warn({ref: vocabulary_size(s.config) for ref, s in sources.items()})
    check_modules(embedding, tensors, method)
    tensors.update(_laid_out(tensors, method, sources[recipe.donor].path))
    config = merged_config(recipe, sources, names, alignment)
    warn_of_functions(recipe, sources)
    warn_of_stops(recipe, config)
    return Plan(recipe, method, sources, tensors, config, alignment, embedding)


def _planned(recipe: Recipe, method: Method, names: Names, origin: Origin) -> PlannedTensor:
    given, name, slice_ = recipe.out_dtype or recipe.dtype or "", origin.name, origin.slice_
    if names.is_kept(name):
        namer = names.namer(slice_)
        return _copied(name, names.stored(origin, namer), namer.ref, given)
    if parameters.is_only_base(slice_, method):
        return _copied(name, names.stored(origin, slice_.inputs[0]), slice_.inputs[0].ref, given)
    refs = tuple(model.ref for model in slice_.inputs)
    inputs = tuple(names.stored(origin, model) for model in slice_.inputs)
    n_bases = len(inputs) - len(slice_.models)
    base, experts = (inputs[0] if n_bases else None), inputs[n_bases:]
    first = inputs[0]
    if not first.dtype.is_floating_point or name.endswith(DERIVED):
        return PlannedTensor(name, first.shape, first.dtype, base, experts, None, refs, {})
    for stored in inputs:
        if stored.dtype not in MERGEABLE:
            raise MismatchError(f"{stored.file}: {name} is {stored.dtype}, which cannot be merged")
    dtype = getattr(torch, given, first.dtype)
    own = [origin.name_in(model) for model in slice_.models]
    kernel, resolved = parameters.build(method, slice_, name, origin.t, own)
    kernel = None if method.is_copy(kernel) else kernel
    return PlannedTensor(name, first.shape, dtype, base, experts, kernel, refs, resolved)


def _copied(name: str, kept: SourceTensor, ref: Reference, given: str) -> PlannedTensor:
    """Plan the copy of one model's tensor, in the recipe's dtype."""
    dtype = getattr(torch, given, kept.dtype) if kept.dtype in MERGEABLE else kept.dtype
    return PlannedTensor(name, kept.shape, dtype, None, (kept,), None, (ref,), {})


def _laid_out(
    tensors: Mapping[str, PlannedTensor], method: Method, donor: Path
) -> dict[str, PlannedTensor]:
    """Complete the tensors whose kernels need ``input_dim``."""
    asking = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.kernel is not None and method.needs_layout(tensor.kernel)
    }
    if not asking:
        return {}
    from merge_plugins.hf.input_dims import LINEAR, input_dims  # seconds: imports transformers

    modules = {name: LINEAR if t.shape[1:] else None for name, t in of_modules(asking).items()}
    shapes = {name: tensor.shape for name, tensor in of_transformer(asking).items()}
    dims = {**input_dims(donor, shapes), **modules}
    return {name: replace(tensor, input_dim=dims[name]) for name, tensor in asking.items()}
