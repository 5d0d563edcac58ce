"""Open a merge: its models, which may be merges themselves, and the plan that joins them."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import replace

from merge_plugins.engine.merge import Merge, MergedTensor
from merge_plugins.parallel import BLOCK
from merge_plugins.planning import make_plan
from merge_plugins.planning.parameters import validate
from merge_plugins.plugins import registry
from merge_plugins.recipe import Delta, Lora, Rebased, Recipe, Reference, refuse_no_recipe
from merge_plugins.recipe.files import naming
from merge_plugins.recipe.references import home
from merge_plugins.sources import ComputedCheckpoint, Source
from merge_plugins.sources.differences import rebased, recovered
from merge_plugins.sources.lora import with_adapter
from merge_plugins.weights import (
    ComputedTensor,
    SourceTensor,
    module_tensors,
    open_checkpoint,
    signature,
)
from merge_plugins.weights.computed import stored_inputs
from merge_plugins.weights.hub import resolve
from merge_plugins.weights.resident import residents


def open_merge(recipe: Recipe, *, block: int = BLOCK) -> Merge:
    """Check a recipe against its models and plan the merge; reads headers only.

    ``block``: elements merged at a time. Raises `MergeError` for everything that can be wrong with
    the merge, before the first weight is read.
    """
    refuse_no_recipe(recipe)
    merge = _planned(recipe, block)
    _keep_resident(merge)
    return merge


def _planned(recipe: Recipe, block: int) -> Merge:
    method = registry().get(recipe.merge_method)
    opened: dict[Reference, Source] = {}
    with naming(recipe.file):
        validate(method, recipe)
        sources = {ref: open_source(ref, recipe.base_model, opened) for ref in recipe.references}
    return Merge(make_plan(recipe, method, sources), block)


def _keep_resident(merge: Merge) -> None:
    """Have sources kept where `shared_sources` keeps any: on the CPU, those that are stored."""
    weights = [source for planned in merge.plan.tensors.values() for source in planned.stored]
    for resident in residents():
        on_cpu = resident.device.type == "cpu"
        each = [stored for w in weights for stored in stored_inputs(w)] if on_cpu else weights
        sizes = {signature(w): math.prod(w.shape) * w.read_as.itemsize for w in each}
        sizes.pop(None, None)
        resident.expect(sizes)


def merged_tensors(recipe: Recipe) -> dict[str, MergedTensor]:
    """Return every tensor of the merge by checkpoint name; each is merged when it is indexed."""
    merge = open_merge(recipe)
    merge.plan.refuse_routing("tensors")
    return merge.tensors()


def open_source(
    ref: Reference, base: Reference | None, opened: MutableMapping[Reference, Source]
) -> Source:
    """Open a model, and the models it is computed from; reads headers only.

    ``base``: the recipe's, to which experts of other bases are brought. ``opened``: models opened
    before; this one is added.
    """
    if ref not in opened:
        opened[ref] = _open(ref, base, opened)
    return opened[ref]


def _open(
    ref: Reference, base: Reference | None, opened: MutableMapping[Reference, Source]
) -> Source:
    if isinstance(ref, str):
        return open_checkpoint(ref)
    if isinstance(ref, Lora):
        folder = resolve(ref.adapter)
        adapted = with_adapter(ref, open_source(ref.model, base, opened), folder)
        return replace(adapted, tensors={**adapted.tensors, **module_tensors(folder)})
    if isinstance(ref, Delta):
        return recovered(ref, open_source(ref.model, base, opened), open_checkpoint(ref.delta))
    if isinstance(ref, Rebased):
        assert base is not None, "a recipe's normal form"
        model, own, other = (
            open_source(r, base, opened) for r in (ref.model, ref.base_model, base)
        )
        return rebased(ref, model, own, other)
    assert isinstance(ref, Recipe), "the only other kind of reference"
    merge = _planned(ref, BLOCK)
    merge.plan.refuse_routing("source of another merge")
    tensors = {name: _as_source(tensor) for name, tensor in merge.tensors().items()}
    return ComputedCheckpoint(ref, resolve(home(ref)), merge.plan.config, tensors)


def _as_source(tensor: MergedTensor) -> SourceTensor:
    """Wrap a weight of an inner merge as a source, rounded as if it had been saved."""
    planned = tensor.planned
    if planned.kernel is None and len(planned.stored) == 1:
        (kept,) = planned.stored
        if kept.dtype == tensor.dtype == kept.read_as:
            return kept
    by_box = planned.kernel is not None and tensor.is_elementwise
    return ComputedTensor(
        tensor.name,
        planned.experts[0].file,
        tensor.dtype,
        planned.shape,
        planned.stored,
        compute=tensor.box if by_box else None,
        whole=None if by_box else lambda: tensor[...],
        ready=tensor.ready if by_box else lambda: None,
        read_as=tensor.dtype,
    )
