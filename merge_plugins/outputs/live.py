"""Hold one live model that becomes one merge after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from merge_plugins.errors import MismatchError
from merge_plugins.hf.experts import load_tokenizer
from merge_plugins.hf.versions import DTYPE
from merge_plugins.outputs.load import Loading, load_merged, open_loading
from merge_plugins.outputs.overwrite import in_place
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import tokenizer_folder


class LiveMerge:
    """A live model and its tokenizer; ``auto_class`` and ``options`` are those of `load_merged`."""

    def __init__(self, auto_class: Any = AutoModelForCausalLM, **options: Any) -> None:
        self._auto_class, self._options = auto_class, options
        self._model: PreTrainedModel | None = None
        self._tokenizer: tuple[Any, Any] = (None, None)

    def become(self, recipe: Recipe) -> tuple[PreTrainedModel, Any]:
        """Turn into the merge of a recipe; return its model and its tokenizer."""
        model, self._model = self._model, None  # dropped after an error, as it may be neither merge
        if model is None or not become(model, recipe, self._auto_class, self._options):
            del model  # before another takes as much memory
            model = load_merged(recipe, self._auto_class, **self._options)
        self._model = model
        folder = tokenizer_folder(recipe)
        if self._tokenizer[0] != folder:
            self._tokenizer = folder, load_tokenizer(folder)
        return model, self._tokenizer[1]

    def close(self) -> None:
        """Free the model."""
        self._model = None


def become(
    model: PreTrainedModel,
    recipe: Recipe,
    auto_class: Any,
    options: Mapping[str, Any],
    config: Any = None,
) -> bool:
    """Overwrite a live model so that it is what `load_merged` of the recipe would return.

    False if only a new model can be that. After an error, or False, drop the model.
    """
    options = dict(options)
    trust = options.pop("trust_remote_code", None)
    loading = open_loading(recipe, auto_class, options, config, trust)
    if not isinstance(model, loading.model_class) or _dtype(loading, options) != model.dtype:
        return False
    try:
        return not in_place(model, loading, options)
    except MismatchError:  # told by who loads it, unless another model fits it
        return False


def _dtype(loading: Loading, options: Mapping[str, Any]) -> Any:
    """Find the dtype in which a merge would be loaded."""
    given = options.get(DTYPE) or "auto"
    if given != "auto":
        return getattr(torch, given) if isinstance(given, str) else given
    said = getattr(loading.config, "dtype", None) or getattr(loading.config, "torch_dtype", None)
    tensors = loading.merge.plan.tensors.values()
    return said or next((t.dtype for t in tensors if t.dtype.is_floating_point), torch.float32)
