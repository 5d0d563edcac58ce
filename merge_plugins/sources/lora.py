"""Add LoRA adapters in PEFT's format to a model's weights while these are read.

Hu et al. 2021, section 4.1: W + s·B·A, with s = alpha/r, or alpha/sqrt(r) for rank-stabilised LoRA
(Kalajdzievski 2023). Weight-decomposed adapters (DoRA, Liu et al. 2024, eq. 5) scale each row of
that to a learnt norm. The sum is kept in float32; rounded to W's dtype it is what PEFT's
merge_and_unload saves. The factors stay separate: a full weight is computed only for methods that
need one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_plugins.api import LowRank, Region
from merge_plugins.errors import CheckpointError, MismatchError
from merge_plugins.recipe import Lora
from merge_plugins.sources.adapter import MERGE_FIRST, Adapter
from merge_plugins.sources.models import ComputedCheckpoint, Source
from merge_plugins.tokenizer.vocabulary import vocabulary_size, with_vocabulary_size
from merge_plugins.weights import ComputedTensor, SourceTensor, StoredTensor
from merge_plugins.weights.spelling import only_match

PANEL = 64
"""Rows of B·A per multiplication, on a fixed grid: bits do not depend on the region read."""


@dataclass(frozen=True)
class Update:
    """Change one weight: add a low-rank product of its shape, and rescale rows for DoRA."""

    added: LowRank
    magnitude: Tensor | None = None
    """Norm of every row of the result, [rows], for DoRA; None for LoRA."""
    turned: bool = False
    """Whether the factors are stored for the transposed weight."""


def with_adapter(ref: Lora, model: Source, adapter: Path) -> ComputedCheckpoint:
    """Add a LoRA adapter's updates to an opened model."""
    tensors = with_updates(Adapter(adapter), model)
    return ComputedCheckpoint(ref, model.path, _resized(model, tensors), tensors)


def with_updates(adapter: Adapter, model: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Apply an adapter to a model's weights lazily; keeps the model's order."""
    tensors = dict(model)
    for name, tensor in adapter.replaced.items():
        whole = _stored_name(name, model, adapter.path, optional=True)
        own = model.get(whole)
        if own is not None and len(own.shape) != len(tensor.shape):
            raise _misfit(adapter.path, name, tensor.shape, own)
        tensors[whole] = tensor
    updated = {f"{module}.weight": factors for module, factors in adapter.factors.items()}
    names = {name: _stored_name(name, model, adapter.path) for name in updated}
    flag = bool(adapter.config.get("fan_in_fan_out")) or any(
        _is_transposed(factors, tensors[names[name]]) for name, factors in updated.items()
    )
    for name, factors in updated.items():
        weight = tensors[names[name]]
        update = _update(adapter, name.removesuffix(".weight"), factors, weight, flag)
        tensors[names[name]] = _added(weight, update, tuple(factors.values()))
    return tensors


def _update(
    adapter: Adapter,
    module: str,
    factors: Mapping[str, StoredTensor],
    weight: SourceTensor,
    flag: bool,
) -> Update:
    kind = "embedding_" if "lora_embedding_A" in factors else ""
    try:
        a, b = factors[f"lora_{kind}A"].view(), factors[f"lora_{kind}B"].view()
    except KeyError as exc:
        raise CheckpointError(f"{adapter.path}: {module} has no {exc}. Download it again.") from exc
    if a.ndim != 2 or b.ndim != 2 or len(weight.shape) != 2:
        raise CheckpointError(f"{adapter.path}: {module} is no linear layer: it {MERGE_FIRST}")
    if not len(a):
        raise CheckpointError(f"{adapter.path}: {module} has rank 0. Leave out this adapter.")
    scale = adapter.scale(module, len(a))
    magnitude = factors.get("lora_magnitude_vector")
    turned = (a.shape[1], b.shape[0]) == weight.shape
    if kind or (turned and (weight.shape[0] != weight.shape[1] or flag)):
        if magnitude is not None:
            raise CheckpointError(
                f"{adapter.path}: DoRA of {module}, which is stored transposed, {MERGE_FIRST}"
            )
        update = Update(LowRank(a.T, b.T, scale), turned=True)
    else:
        norms = None if magnitude is None else magnitude.view().reshape(-1)
        update = Update(LowRank(b, a, scale), norms)
    up, down = update.added.up, update.added.down
    shape = (up.shape[0], down.shape[1])
    n_norms = len(up) if update.magnitude is None else len(update.magnitude)
    if shape != weight.shape or up.shape[1] != down.shape[0] or n_norms != len(up):
        raise _misfit(adapter.path, module, shape, weight)
    return update


def _misfit(path: Path, name: str, shape: Sequence[int], weight: SourceTensor) -> MismatchError:
    """Build the error for a change of another shape than the weight it changes."""
    return MismatchError(
        f"{path}: the adapter's {name} is {list(shape)}, {weight.name} is {list(weight.shape)} in "
        f"{weight.file.parent}. Is it an adapter of this model?"
    )


def _stored_name(
    wanted: str, model: Mapping[str, SourceTensor], path: Path, *, optional: bool = False
) -> str:
    """Find the checkpoint name of a weight that an adapter names; prefixes may differ."""
    name = only_match(wanted, model)
    if name is not None:
        return name
    if optional:
        return wanted
    raise MismatchError(
        f"{path}: the adapter changes {wanted}, which the model has not; its weights look like "
        f"{next(iter(model), None)!r}. Is it an adapter of this model?"
    )


def _is_transposed(factors: Mapping[str, StoredTensor], weight: SourceTensor) -> bool:
    """Whether the shapes prove that a weight is stored (in, out), as GPT-2's Conv1D is."""
    a, b = factors.get("lora_A"), factors.get("lora_B")
    if a is None or b is None:
        return False
    turned = (*a.shape[1:], *b.shape[:1])
    return turned == weight.shape and turned[0] != turned[-1]


def _added(
    weight: SourceTensor, update: Update, factors: tuple[SourceTensor, ...]
) -> ComputedTensor:
    n_rows, n_columns = weight.shape

    def compute(region: Region) -> Tensor:
        (start, stop), (left, right) = region.bounds
        for factor in factors:
            factor.view()  # refuses a file that was cut off: `update` holds views of it
        made = torch.empty(region.sizes, dtype=torch.float32)
        a = update.added.down.float().contiguous()
        for top in range(start - start % PANEL, stop, PANEL):
            bottom = min(top + PANEL, n_rows)
            first, last = max(start, top), min(stop, bottom)
            b = update.added.up[top:bottom].float().contiguous()
            delta = (b @ a).mul_(update.added.scale)[first - top : last - top]
            if update.magnitude is None:
                own = weight.read(Region(weight.shape, ((first, last), (left, right))))
                made[first - start : last - start] = own + delta[:, left:right]
                continue
            own = weight.read(Region(weight.shape, ((first, last), (0, n_columns))))
            whole = own.float() + delta
            norm = torch.linalg.vector_norm(whole, dim=1)
            whole *= (update.magnitude[first:last].float() / norm)[:, None]
            made[first - start : last - start] = whole[:, left:right]
        return made

    about = (weight.name, weight.file, weight.dtype, weight.shape)
    how = ("adapter", update.added.scale, update.turned)
    made = ComputedTensor(*about, (weight, *factors), compute, how=how)
    if update.magnitude is None:
        made.factors = update.added
    return made


def _resized(model: Source, tensors: Mapping[str, SourceTensor]) -> Mapping[str, Any]:
    """Update a config's vocabulary size if the adapter replaced an embedding."""
    rows = vocabulary_size(model.config)
    grown = {
        tensors[name].shape[0]
        for name, tensor in model.items()
        if tensor.shape[:1] == (rows,) and tensors[name].shape != tensor.shape
    }
    return with_vocabulary_size(model.config, grown.pop()) if len(grown) == 1 else model.config
