"""Load merges in SGLang, from a recipe folder in place of a model's. Experimental.

    python -m sglang.launch_server --model-path RECIPE_FOLDER

RECIPE_FOLDER is written by ``merge-plugins mount``. SGLang's load formats are a closed list, but
plugins may wrap its functions: the one that finds a model's weights on disk, when the server starts
and when it is asked to update them, finds a merge's here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from merge_plugins.engine import Merge, open_merge
from merge_plugins.outputs.ranks import lazily
from merge_plugins.outputs.recipe_folder import engines_recipe
from merge_plugins.weights.modules import of_transformer

LOADER = "sglang.srt.model_loader.loader.DefaultModelLoader"
Weights = Iterator[tuple[str, torch.Tensor]]


def register() -> None:
    """Wrap the loader's function; SGLang calls this in each of its processes."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{LOADER}._get_weights_iterator", weights, HookType.AROUND)


def weights(original: Callable[..., Weights], loader: Any, source: Any, **options: Any) -> Weights:
    """Return a merge's weights by checkpoint name, or what SGLang finds in any other model.

    Each is merged as it is copied, so that a rank reads and merges its own share of it. What whole
    weights are measured for, every rank measures alone: one that rolls an update back, as SGLang
    does, would wait for others that do not. Raises before a weight is read.
    """
    where = {"revision": source.revision, "cache_dir": loader.load_config.download_dir}
    trusted = bool(getattr(source.model_config, "trust_remote_code", False))
    recipe = engines_recipe(source.model_or_path, trusted, **where)
    if recipe is None:
        return original(loader, source, **options)
    plan = open_merge(recipe).plan
    plan.refuse_routing("SGLang engine")
    return _merged(Merge(plan), source.prefix)


def _merged(merge: Merge, prefix: str) -> Weights:
    tensors = of_transformer(merge.tensors())
    yield from ((prefix + name, lazy) for name, lazy in lazily(tensors.items()))
    merge.plan.refuse_changes()
