"""Load merges in vLLM: load format ``merged``, with weights from a recipe.

    vllm serve RECIPE_FOLDER --load-format merged
    vllm serve BASE --load-format merged --model-loader-extra-config '{"recipe": "merge.yaml"}'

RECIPE_FOLDER is written by ``merge-plugins mount``. The second form takes any recipe whose merge
has the same shape as its donor, the model of its config and tokenizer.

A running engine becomes another merge by `swap.LiveEngine`; over HTTP, ``merge-plugins swap``.
"""

import warnings
from contextlib import suppress
from typing import Any

LOAD_FORMAT = "merged"
"""Also the name of the backend for vLLM's weight transfer, by which a live engine is swapped."""
KEY = "VLLM_API_KEY"
"""The environment variable with the key of a server."""


def engine_options() -> dict[str, Any]:
    """Return the options with which an engine lets itself be swapped, if this release has any."""
    return {} if _transfers() is None else {"weight_transfer_config": {"backend": LOAD_FORMAT}}


def _transfers() -> Any:
    try:
        from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    except ImportError:  # an older release, whose engines reload from a path
        return None
    return WeightTransferEngineFactory


def register() -> None:
    """Register the load format, and the way to swap; vLLM calls this in each of its processes.

    Warns instead of raising if that fails, so that engines without a merge start all the same.
    """
    try:
        from vllm.model_executor.model_loader import register_model_loader

        from harness_adapters.vllm.loader import MergedModelLoader
    except ImportError as exc:
        warnings.warn(
            f"merge-plugins does not know this release of vLLM, which therefore has no load format "
            f"{LOAD_FORMAT!r}: {exc}",
            stacklevel=2,
        )
        return
    register_model_loader(LOAD_FORMAT)(MergedModelLoader)
    if (transfers := _transfers()) is not None:
        with suppress(ValueError):  # registered before: a process may be told twice
            transfers.register_engine(LOAD_FORMAT, "harness_adapters.vllm.transfer", "Transfer")
