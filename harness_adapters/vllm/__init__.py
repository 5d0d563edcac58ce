"""vLLM's load format ``merged``: an engine whose weights come from a recipe.

    vllm serve RECIPE_FOLDER --load-format merged
    vllm serve BASE --load-format merged --model-loader-extra-config '{"recipe": "merge.yaml"}'

The first takes what ``merge-plugins mount`` writes. The second takes a recipe as it is, provided
that its merge has the shape of its donor.
"""

import warnings

LOAD_FORMAT = "merged"


def register() -> None:
    """Tell vLLM, which calls this in each of its processes, of the load format.

    Where that fails it warns: an engine that merges nothing starts all the same.
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
