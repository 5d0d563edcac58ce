"""Load one model of a merge as a live transformers model, for gradients and activations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from merge_plugins.errors import CheckpointError, MismatchError
from merge_plugins.hf.classes import absent_weights, class_to_run
from merge_plugins.hf.versions import DTYPE, RENAMES, adapt
from merge_plugins.parallel import accelerator
from merge_plugins.plugins.method import RegisteredStatistic
from merge_plugins.sources import Source
from merge_plugins.weights import held
from merge_plugins.weights.damage import refuse_damage
from merge_plugins.weights.modules import of_transformer
from merge_plugins.weights.resident import free_bytes
from merge_plugins.weights.spelling import with_or_without

Live = TypeVar("Live", bound=nn.Module)
ROOM = 2.5
"""Free GPU memory needed to use the GPU, in multiples of the model's size."""


def is_classifier(checkpoint: Source) -> bool:
    """Whether the model is a sequence classifier."""
    return "ForSequenceClassification" in str(checkpoint.config.get("architectures"))


def load(checkpoint: Source, device: torch.device | None = None) -> PreTrainedModel:
    """Load a model in float32 and evaluation mode, on a GPU if it fits, this one if it is named.

    Raises `MismatchError` for absent weights, `CheckpointError` for NaN or infinity in one.
    """
    model_class = class_to_run(checkpoint)
    config = AutoConfig.from_pretrained(str(checkpoint.path), trust_remote_code=False)
    adapt(config, checkpoint.config, checkpoint.path)
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict={name: stored.view() for name, stored in of_transformer(checkpoint).items()},
        output_loading_info=True,
        **{DTYPE: torch.float32},
    )
    absent = absent_weights(info)
    if absent:
        raise MismatchError(
            f"{type(model).__name__} needs {len(absent)} weights that {checkpoint.ref} does not "
            f"have, first {absent[0]}; it cannot be run for calibration"
        )
    if not all(torch.isfinite(weight).all() for weight in model.parameters()):
        with held(checkpoint.values()):
            for stored in checkpoint.values():
                refuse_damage(stored)
    return placed(model.eval(), device)  # type: ignore[no-any-return]


def placed(model: Live, device: torch.device | None = None) -> Live:
    """Move a model to the GPU named, or else the current one, if enough of its memory is free."""
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    device = accelerator() if device is None else device
    free = None if device is None else free_bytes(device)
    if device is not None and free is not None and free > ROOM * n_bytes:
        model.to(device)
    return model


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model's folder, without its own code, or raise `CheckpointError`."""
    try:  # False, not None: then transformers would ask at the terminal
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as exc:
        why = " ".join(str(exc).split())
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {why}") from exc


def by_checkpoint_name(
    model: PreTrainedModel,
    piece: Mapping[str, Tensor],
    names: Collection[str],
    statistic: RegisteredStatistic,
) -> dict[str, Tensor]:
    """Rename part of a statistic from a live model's parameter names to its checkpoint's.

    ``piece``: keys are names of ``model.named_parameters()``. Where loading fused several weights
    into a parameter, an elementwise statistic is split like it; other statistics leave it out.
    """
    if statistic.elementwise:
        tensors = _as_stored(model, dict(piece))
    else:
        tensors = {new: piece[old] for new, old in _only_renamed(model) if old in piece}
    return {_stored_name(model, name, names): tensor for name, tensor in tensors.items()}


def stored_whole(model: PreTrainedModel, names: Collection[str]) -> dict[str, str]:
    """Map checkpoint names to a live model's parameter names.

    Parameters that loading fuses from several stored weights are left out.
    """
    return {_stored_name(model, name, names): own for name, own in _only_renamed(model)}


def _stored_name(model: PreTrainedModel, name: str, names: Collection[str]) -> str:
    """Find a weight's checkpoint name: with or without the prefix that a head adds."""
    return with_or_without(model.base_model_prefix, name, names) or name


def _only_renamed(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Pair (checkpoint name, parameter name) for every parameter that is not fused."""
    parameters = model.named_parameters(remove_duplicate=False)
    own = {name: torch.empty_like(weight, device="meta") for name, weight in parameters}
    names = {id(weight): name for name, weight in own.items()}
    for name, weight in _as_stored(model, own).items():
        if id(weight) in names:
            yield name, names[id(weight)]


def _as_stored(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Revert the renaming and fusing of loading, on tensors by parameter name."""
    if not RENAMES:
        return tensors
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return reverted
