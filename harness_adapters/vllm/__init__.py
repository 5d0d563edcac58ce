"""vLLM's load format ``merged``: an engine whose weights come from a recipe.

    vllm serve RECIPE_FOLDER --load-format merged
    vllm serve BASE --load-format merged --model-loader-extra-config '{"recipe": "merge.yaml"}'

The first takes what ``merge-plugins mount`` writes. The second takes a recipe as it is, provided
that its merge has the shape of its donor.
"""

LOAD_FORMAT = "merged"


def register() -> None:
    """Tell vLLM, which calls this in each of its processes, of the load format."""
    from vllm.model_executor.model_loader import register_model_loader

    from harness_adapters.vllm.loader import MergedModelLoader  # imports most of vLLM

    register_model_loader(LOAD_FORMAT)(MergedModelLoader)
