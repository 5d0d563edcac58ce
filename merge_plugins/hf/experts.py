"""One of a merge's models as a live transformers model, for gradients and activations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from merge_plugins.errors import MismatchError
from merge_plugins.hf.classes import absent_weights, class_to_run
from merge_plugins.hf.versions import DTYPE, RENAMES, adapt
from merge_plugins.plugins.method import RegisteredStatistic
from merge_plugins.sources import Source
from merge_plugins.weights import held
from merge_plugins.weights.computed import refuse_damage
from merge_plugins.weights.spelling import with_or_without

Live = TypeVar("Live", bound=nn.Module)
ROOM = 2.5
"""How many times a model must fit into the free memory of a GPU to be put there."""


def is_classifier(checkpoint: Source) -> bool:
    """Whether the model says what class a text is of, not which token comes next."""
    return "ForSequenceClassification" in str(checkpoint.config.get("architectures"))


def load(checkpoint: Source) -> PreTrainedModel:
    """Return a model in float32 and evaluation mode, on a GPU if there is one with room for it."""
    model_class = class_to_run(checkpoint)
    config = AutoConfig.from_pretrained(str(checkpoint.path))
    adapt(config, checkpoint.config, checkpoint.path)
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict={name: stored.view() for name, stored in checkpoint.items()},
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
    return placed(model.eval())  # type: ignore[no-any-return]


def placed(model: Live) -> Live:
    """Move a model to the GPU, if there is one with room for it."""
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > ROOM * n_bytes:
        model.to("cuda")
    return model


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a model's folder."""
    return AutoTokenizer.from_pretrained(str(folder))


def by_checkpoint_name(
    model: PreTrainedModel,
    piece: Mapping[str, Tensor],
    names: Collection[str],
    statistic: RegisteredStatistic,
) -> dict[str, Tensor]:
    """Return a piece of a statistic by the names of the checkpoint that a model was loaded from.

    ``piece`` has the names of ``model.named_parameters()``. Loading may have renamed a weight, or
    built it out of several; only an elementwise statistic can be taken apart again like that.
    """
    if statistic.elementwise:
        found = _as_stored(model, dict(piece))
    else:
        found = {new: piece[old] for new, old in _only_renamed(model) if old in piece}
    return {_stored_name(model, name, names): tensor for name, tensor in found.items()}


def stored_whole(model: PreTrainedModel, names: Collection[str]) -> dict[str, str]:
    """Return the model's own name of every weight by that of the checkpoint it was loaded from.

    Without weights that loading builds out of several stored ones.
    """
    return {_stored_name(model, name, names): own for name, own in _only_renamed(model)}


def _stored_name(model: PreTrainedModel, name: str, names: Collection[str]) -> str:
    """Spell a name as the checkpoint does: with or without the prefix that a head adds."""
    return with_or_without(model.base_model_prefix, name, names) or name


def _only_renamed(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Yield (checkpoint name, own name) of every parameter that is stored whole."""
    parameters = model.named_parameters(remove_duplicate=False)
    own = {name: torch.empty_like(weight, device="meta") for name, weight in parameters}
    names = {id(weight): name for name, weight in own.items()}
    for name, weight in _as_stored(model, own).items():
        if id(weight) in names:
            yield name, names[id(weight)]


def _as_stored(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo on named tensors what loading did to the weights of those names."""
    if not RENAMES:
        return tensors
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return found
