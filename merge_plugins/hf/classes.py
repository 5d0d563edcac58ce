"""Find the transformers class of a model; list the weights that it did not get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import transformers
from transformers import PreTrainedModel

from merge_plugins.errors import CheckpointError, RecipeError
from merge_plugins.sources import Source


def architecture(names: Iterable[str]) -> type[PreTrainedModel] | None:
    """Find the first of some class names that is a model class of transformers."""
    for name in names:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return None


def class_to_run(checkpoint: Source) -> Any:
    """Find the class that a model's config names, head included, or raise `CheckpointError`."""
    name = (checkpoint.config.get("architectures") or ["nothing"])[0]
    found = architecture([name])
    if found is None:
        raise CheckpointError(
            f"{checkpoint.ref}: its config.json names {name} under architectures, which is no "
            "model of transformers, so it cannot be run for calibration. Choose a method that "
            "needs no data."
        )
    return found


def class_to_load(
    auto_class: Any, config: Any, donor: str, trust_remote_code: bool | None = None
) -> Any:
    """Find the class that an Auto class builds for a live config; a model class is itself.

    ``donor``: the folder with the model's own code, used with ``trust_remote_code``. Raises
    `RecipeError` if the Auto class has none.
    """
    if isinstance(auto_class, type) and issubclass(auto_class, PreTrainedModel):
        return auto_class
    if not hasattr(auto_class, "_model_mapping"):
        name = getattr(auto_class, "__name__", auto_class)
        raise RecipeError(
            f"{name} is neither a model class nor an Auto class of transformers. For models of "
            "sentence-transformers, call load_embedder(recipe) or load_reranker(recipe)"
        )
    remote = (getattr(config, "auto_map", None) or {}).get(auto_class.__name__)
    if remote and trust_remote_code:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(remote, donor)
    try:
        found = auto_class._model_mapping[type(config)]
    except KeyError:
        hint = " Its code comes with the model: pass trust_remote_code=True." if remote else ""
        raise RecipeError(
            f"{auto_class.__name__} knows no model for {type(config).__name__}.{hint}"
        ) from None
    return found[0] if isinstance(found, list | tuple) else found


def absent_weights(info: Mapping[str, Any]) -> list[str]:
    """List the weights that loading left at random: missing, or of another shape.

    ``info``: the second result of ``from_pretrained(..., output_loading_info=True)``.
    """
    return sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
