"""Load merges in vLLM: load format ``merged``, with weights from a recipe.

    vllm serve RECIPE_FOLDER --load-format merged
    vllm serve BASE --load-format merged --model-loader-extra-config '{"recipe": "merge.yaml"}'

RECIPE_FOLDER is written by ``merge-plugins mount``. The second form takes any recipe whose merge
has the same shape as its donor, the model of its config and tokenizer.
"""

import warnings

LOAD_FORMAT = "merged"


def register() -> None:
    """Register the load format; vLLM calls this in each of its processes.

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
