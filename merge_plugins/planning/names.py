"""List the tensors of a merge, and match each to the names it has in the models.

Whole models: the names of the donor, which every model must have. A stack of layers: each slice's
layers, numbered anew, between the weights outside any layer; of those, the embedding comes from
the models of the first slice, the final norm and the head from those of the last one. A recipe with
modules does one or the other for each part of the model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from merge_plugins.errors import MergeWarning, MismatchError, RecipeError
from merge_plugins.recipe import Entry, Recipe, Reference, Slice, parts
from merge_plugins.recipe.parts import WHOLE
from merge_plugins.recipe.recipe import HEADS, NONE
from merge_plugins.recipe.slices import is_stack
from merge_plugins.sources import Source, tied_to
from merge_plugins.tokenizer import Alignment
from merge_plugins.tokenizer.vocabulary import is_vocabulary
from merge_plugins.weights import SourceTensor
from merge_plugins.weights.modules import in_module
from merge_plugins.weights.spelling import NUMBER

DERIVED = ("rotary_emb.inv_freq", ".attn.bias", ".masked_bias", ".attention.bias", "position_ids")
"""Endings of buffers that old checkpoints store and every model class computes anew."""
BEFORE = re.compile(r"embed(?!_out)|\bwte\b|\bwpe\b|project_in")
"""In names of weights that are used before the first layer."""


def layer_of(name: str) -> int | None:
    """Parse the layer a tensor belongs to: the first number in its name, if it has one."""
    found = NUMBER.search(name)
    return int(found[0]) if found else None


def stack_of(name: str) -> str:
    """Return the prefix that names of a tensor's stack of layers share; "" outside any layer."""
    found = NUMBER.search(name)
    return name[: found.start()] if found else ""


def gradient_position(layer: int | None, layers: int) -> float:
    """Compute a layer's position in a gradient: 0 for the first layer, 1 for the last.

    Weights outside any layer are at 0 and a single layer is at 1, as in mergekit. ``layers``: the
    number of layers in the slice.
    """
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


@dataclass(frozen=True)
class Origin:
    """The slice and layer that one tensor of a merge comes from."""

    name: str
    slice_: Slice
    t: float
    """Position in gradients, in [0, 1]."""
    layer: int | None = None
    """The layer within the slice of a stack; None: the name is the same in every model."""

    def name_in(self, model: Entry) -> str:
        """Return the tensor's name in a model of the slice."""
        if self.layer is None:
            return self.name
        first = model.layers[0] if model.layers else 0
        return NUMBER.sub(str(first + self.layer), self.name, count=1)


class Names(Mapping[str, Origin]):
    """Every tensor of a merge by name, checked against the headers of all models when built.

    ``needless``: names of the donor that other models need not have; these tensors are copied.
    ``heads``: names that the recipe excludes besides those it spells out.
    """

    def __init__(
        self,
        checkpoints: Mapping[Reference, Source],
        recipe: Recipe,
        alignment: Alignment | None = None,
        needless: Collection[str] = (),
        heads: Collection[str] = (),
    ) -> None:
        self._checkpoints, self._recipe, self._alignment = checkpoints, recipe, alignment
        self._needless, self._heads = needless, heads
        self._tasked = {model.ref for model in recipe.tasks.values()}  # each keeps what is apart
        self.donor = checkpoints[recipe.donor]
        self._aligned: dict[tuple[str, Reference], SourceTensor] = {}
        self._by_layer, self._last = cache(self._layers_of), cache(self._last_of)
        self._parts = recipe.parts
        self._part_of = cache(partial(parts.part_of, parts=[*self._parts]))
        self._stacks = {part for part, slices in self._parts.items() if is_stack(slices)}
        wanted = [name for name in self.donor if not self.is_kept(name)]
        parts.check((n for n in wanted if not n.endswith(DERIVED)), [*self._parts])
        self._origins = {origin.name: origin for origin in self._all()}
        self._check_exclude()
        used: dict[Reference, set[str]] = {ref: set() for ref in checkpoints}
        for origin in self._origins.values():
            for model in self.inputs(origin):
                used[model.ref].add(origin.name_in(model))
                self._check_shape(origin, model)
        for ref, names in used.items():
            self._check_extra(ref, names)

    def __getitem__(self, name: str) -> Origin:
        return self._origins[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)

    def is_kept(self, name: str) -> bool:
        """Whether a tensor is the donor's: excluded by the recipe, or needless in other models."""
        return name in self._needless or self._is_excluded(name)

    @property
    def spellings(self) -> set[str]:
        """Every name that a filter may match: the merge's, those of the models, and a tied head."""
        origins = self._origins.values()
        tied = {"lm_head.weight"} if self.donor.config.get("tie_word_embeddings") else set()
        return {*self, *(o.name_in(model) for o in origins for model in o.slice_.inputs), *tied}

    def layers(self, slices: Sequence[Slice]) -> list[tuple[Reference, int]]:
        """List the layers of a stack: the model that names each one's weights, its number there."""
        found = []
        for slice_ in slices:
            namer = self.namer(slice_)
            start = namer.layers[0] if namer.layers else 0
            found += [(namer.ref, start + layer) for layer in range(self._length(slice_))]
        return found

    def namer(self, slice_: Slice) -> Entry:
        """Return the model that names the weights of a slice."""
        return slice_.inputs[0] if slice_.part in self._stacks else Entry(self._recipe.donor)

    def inputs(self, origin: Origin) -> tuple[Entry, ...]:
        """Return the models that a tensor is read from: one, if it is not merged."""
        namer = self.namer(origin.slice_)
        if self.is_kept(origin.name):
            return (namer,)
        if origin.slice_.part in self._stacks:
            return origin.slice_.inputs
        others = [m.ref for m in origin.slice_.inputs] if origin.slice_.part else self._checkpoints
        return tuple(map(Entry, dict.fromkeys((namer.ref, *others))))

    def stored(self, origin: Origin, model: Entry) -> SourceTensor:
        """Find a model's tensor, with the merge's rows if its rows are tokens."""
        name, alignment, donor = origin.name, self._alignment, self.donor
        if alignment is None or origin.layer is not None or name not in donor:
            return self._own(origin, model)
        if not is_vocabulary(name, donor[name].shape, donor.config):
            return self._own(origin, model)
        if (name, model.ref) not in self._aligned:
            weights = {other: self._own(origin, Entry(other)) for other in self._checkpoints}
            self._aligned[name, model.ref] = alignment.of(model.ref, weights)
        return self._aligned[name, model.ref]

    def _all(self) -> Iterator[Origin]:
        names = [n for n in self.donor if self._everywhere(n) or not n.endswith(DERIVED)]
        for part, slices in self._parts.items():
            own = [name for name in names if self._part_of(name) == part]
            yield from (self._stacked if part in self._stacks else self._whole)(slices, own)
        alone = Slice((Entry(self._recipe.donor),))  # excluded, and of no module
        yield from (Origin(name, alone, 0.0) for name in names if self._part_of(name) is None)

    def _whole(self, slices: Sequence[Slice], names: Sequence[str]) -> Iterator[Origin]:
        (slice_,) = slices
        layers: dict[str, int] = {}
        for name in names:
            stack = stack_of(name)
            layers[stack] = max(layers.get(stack, 0), 1 + (layer_of(name) or 0))
        is_raw = self.donor.path.is_file()  # mergekit-pytorch: no weight is of any layer
        for name in names:
            t = 0.0 if is_raw else gradient_position(layer_of(name), layers[stack_of(name)])
            yield Origin(name, slice_, t)

    def _stacked(self, slices: Sequence[Slice], names: Sequence[str]) -> Iterator[Origin]:
        outside = [n for n in names if layer_of(n) is None and not n.endswith(DERIVED)]
        before = [name for name in outside if BEFORE.search(name)]
        yield from (Origin(name, slices[0], 0.0) for name in before)
        number = 0
        for slice_ in slices:
            namer, length = self.namer(slice_), self._length(slice_)
            start = namer.layers[0] if namer.layers else 0
            inside = self._by_layer(namer.ref, slice_.part)
            for layer in range(length):
                t = gradient_position(layer, length)
                for name in inside[start + layer]:
                    yield Origin(NUMBER.sub(str(number), name, count=1), slice_, t, layer)
                number += 1
        last = self._last(slice_.part)
        yield from (Origin(name, last, 0.0) for name in outside if name not in before)

    def _last_of(self, part: str) -> Slice:
        """Return the slice that merges the final norm and the head of a part.

        It is the last one; mergekit pairs its models with those of the first, and drops the rest.
        """
        first, *_, last = (*self._parts[part][:1], *self._parts[part])
        n_models = len(first.models)
        if len(last.models) <= n_models:
            return last
        left_out = ", ".join(str(model.ref) for model in last.models[n_models:])
        warnings.warn(
            f"final norm and head are merged without {left_out}, as mergekit does it: the last "
            f"slice has more models than the first. End with a slice whose layer_range is empty, "
            "[n, n], of the models that shall give them",
            MergeWarning,
            stacklevel=2,
        )
        return replace(last, models=last.models[:n_models])

    def _length(self, slice_: Slice) -> int:
        """Count the layers that each model of a slice gives, or raise `MismatchError`."""
        lengths = {}
        for model in slice_.inputs:
            n_layers = len(self._by_layer(model.ref, slice_.part))
            first, stop = model.layers or (0, n_layers)
            if stop > n_layers:
                raise MismatchError(
                    f"layer_range [{first}, {stop}] of {model.ref}, which has {n_layers} layers: "
                    f"it ends at {n_layers} at most"
                )
            lengths[model.ref] = stop - first
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{n} of {ref}" for ref, n in lengths.items())
            raise MismatchError(f"the sources of a slice need as many layers each; got {shown}")
        return max(lengths.values())

    def _layers_of(self, ref: Reference, part: str) -> dict[int, list[str]]:
        """Group a model's tensors of a part by layer: one stack, numbered from 0."""
        layers: dict[int, list[str]] = {}
        stacks: dict[str, None] = {}
        for name in self._checkpoints[ref]:
            layer = layer_of(name)
            if layer is not None and not name.endswith(DERIVED) and self._part_of(name) == part:
                stacks[stack_of(name)] = None
                layers.setdefault(layer, []).append(name)
        if len(stacks) > 1:
            raise MismatchError(
                f"{ref} has more than one stack of layers: {', '.join(s + 'N' for s in stacks)}. "
                "Write modules: {<name>: {slices: […]}, <name>: {models: […]}}, one for each"
            )
        if sorted(layers) != list(range(len(layers))):
            raise MismatchError(f"{ref}: its layers are not numbered from 0 to {len(layers) - 1}")
        return layers

    def _own(self, origin: Origin, model: Entry) -> SourceTensor:
        """Find a model's tensor as it is; a tied head is the embedding it is tied to."""
        checkpoint, name = self._checkpoints[model.ref], origin.name_in(model)
        if name in checkpoint:
            return checkpoint[name]
        namer = self._named(origin)
        embedding = tied_to(name, namer.shape, checkpoint)
        if embedding is not None:
            return embedding
        whose = self.donor.ref if origin.layer is None else self.namer(origin.slice_).ref
        raise MismatchError(
            f"{name} is in {whose} but not in {model.ref}. Both must be fine-tunes of one "
            "model; leave a head of its own out of the merge with exclude: [part of its name]."
        )

    def _named(self, origin: Origin) -> SourceTensor:
        """Return the tensor that gives the merged one its name."""
        if origin.layer is None:
            return self.donor[origin.name]
        namer = self.namer(origin.slice_)
        return self._checkpoints[namer.ref][origin.name_in(namer)]

    def _everywhere(self, name: str) -> bool:
        return all(name in checkpoint for checkpoint in self._checkpoints.values())

    def _check_shape(self, origin: Origin, model: Entry) -> None:
        namer = self.namer(origin.slice_)
        stored, wanted = self.stored(origin, model), self.stored(origin, namer)
        if stored.shape == wanted.shape:
            return
        hint = ""
        if stored.shape[1:] == wanted.shape[1:]:
            hint = (
                " Their vocabularies differ: set tokenizer_source: base, union or a model, and "
                "rows are aligned by token."
            )
        raise MismatchError(
            f"{stored.name} is {list(wanted.shape)} in {namer.ref} but "
            f"{list(stored.shape)} in {model.ref} ({stored.file.name}).{hint} "
            "Models to merge must be fine-tunes of one base with equal shapes."
        )

    def _is_excluded(self, name: str) -> bool:
        return name in self._heads or self._recipe.is_excluded(name)

    def _check_exclude(self) -> None:
        names = {name for checkpoint in self._checkpoints.values() for name in checkpoint}
        for part in self._recipe.exclude:
            if part not in (HEADS, NONE) and not any(part in name for name in names):
                raise RecipeError(
                    f"exclude: {part!r} is part of no tensor's name. Names look like "
                    f"{next(iter(self))!r}"
                )

    def _check_extra(self, ref: Reference, used: set[str]) -> None:
        """Refuse tensors of a model that the merge would leave out."""
        for name, stored in self._checkpoints[ref].items():
            if name in used or name.endswith(DERIVED) or self._is_excluded(name):
                continue
            if not self._takes(ref, name) or (name in self._needless and ref in self._tasked):
                continue
            embedding = tied_to(name, stored.shape, self._checkpoints[ref])
            if embedding is not None and torch.equal(embedding.view(), stored.view()):
                continue  # old files store a tied head twice
            hint = "If it is an output head of its own, set base_model to a model that has one too"
            if in_module(name):
                hint = f"It is of a module behind the transformer: write donor: {ref} to take it"
            raise MismatchError(
                f"{name} {list(stored.shape)} is in {ref} ({stored.file.name}) but not in "
                f"{self.donor.ref}, which names the merge's tensors. {hint}, or exclude: it."
            )

    def _takes(self, ref: Reference, name: str) -> bool:
        """Whether the merge includes the part and the layer that a model's weight is in."""
        part, layer = self._part_of(name), layer_of(name)
        slices = self._parts.get(part or WHOLE, ())
        if part not in self._stacks:
            return part == WHOLE or any(m.ref == ref for slice_ in slices for m in slice_.inputs)
        if layer is None:
            ends = (*slices[0].inputs, *self._last(part).inputs)
            return name not in self and any(model.ref == ref for model in ends)
        ranges = [m.layers for slice_ in slices for m in slice_.inputs if m.ref == ref]
        return any(r is None or r[0] <= layer < r[1] for r in ranges)
