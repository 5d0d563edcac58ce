"""Find the dimension of each weight that runs over its layer's inputs, from the model's modules.

Methods that use the columns of a layer need it. The modules are built on the meta device, without
memory for weights: a second for any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from merge_plugins.errors import MismatchError
from merge_plugins.hf.classes import architecture
from merge_plugins.hf.rehearsal import config_of
from merge_plugins.weights.files import read_json
from merge_plugins.weights.spelling import by_longest_tail, by_tail

LINEAR = -1
"""(out, in); assumed for weights without a module, such as experts that loading fuses."""
TRANSPOSED = ("AriaExperts", "GptOssExperts", "Llama4TextExperts")
"""Experts stored (expert, in, out) in releases without the attribute ``is_transposed``."""


def input_dims(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int | None]:
    """Find `Slot.input_dim` of every weight of a model folder, by checkpoint name.

    A folder whose config names no model type holds bare matrices: linear layers. Raises
    `MismatchError` when transformers has no code for the model type.
    """
    model_type = read_json(model / "config.json").get("model_type")
    if model_type is None:
        return dict.fromkeys(shapes, LINEAR)
    weights = list(_weights(_modules(model, model_type)))
    tables = {
        n_dims: by_tail((name, dim) for name, weight, dim in weights if weight.ndim == n_dims)
        for n_dims in {len(shape) for shape in shapes.values()}
    }
    return {
        name: by_longest_tail(name, tables[len(shape)], LINEAR) for name, shape in shapes.items()
    }


def _modules(model: Path, model_type: str) -> nn.Module:
    config = config_of(read_json(model / "config.json"), model / "config.json")
    try:
        if config is None:
            raise ValueError("an unknown model type")
        named = architecture(config.architectures or ())
        build: Callable[..., nn.Module] = named or AutoModel.from_config
        with torch.device("meta"):
            return build(config)
    except ValueError as exc:
        raise MismatchError(
            f"{model}: this method looks at the columns of each layer, and transformers "
            f"{transformers.__version__} has no code of its own for {model_type!r} that would say "
            "which they are. Choose a method that treats all weights alike, e.g. task_arithmetic."
        ) from exc


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, int | None]]:
    """Iterate over (name, parameter, input dimension); a tied one has several names."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, weight in module.named_parameters(recurse=False):
            name = f"{prefix}.{key}" if prefix else key
            tied = id(weight) in embeddings  # a tied head is the embedding
            yield name, weight, 0 if tied else _input_dim(module, key, weight)


def _input_dim(module: nn.Module, key: str, weight: nn.Parameter) -> int | None:
    if weight.ndim < 2 or key.endswith("bias") or isinstance(module, _ConvNd):
        return None
    if isinstance(module, Conv1D):
        return -2
    transposed = type(module).__name__ in TRANSPOSED
    return -2 if weight.ndim > 2 and getattr(module, "is_transposed", transposed) else LINEAR
