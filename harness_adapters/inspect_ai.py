"""The provider ``merged`` of inspect_ai: its own commands, with a recipe for a model.

    inspect eval task.py --model merged/merge.yaml -M do_sample=false

inspect_ai imports this module, its entry point. The merge answers through inspect_ai's own provider
``hf``, whose arguments ``-M`` takes. In logs, and in the cache of answers, the model is
``merged/merge.yaml@DIGEST``, which is also the name to ask for exactly that merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from inspect_ai.model import GenerateConfig, ModelAPI, get_model, modelapi

from harness_adapters.ending import end_with_the_message
from merge_plugins.errors import MismatchError


def merged(
    model_name: str,
    base_url: str | None = None,
    api_key: str | None = None,
    config: GenerateConfig | None = None,
    *,
    trust_remote_code: bool = False,
    plugin: str | Sequence[str] | None = None,
    **arguments: Any,
) -> ModelAPI:
    """Load the merge of a recipe, ``RECIPE`` or ``RECIPE@DIGEST``; arguments of provider ``hf``.

    ``trust_remote_code``: whether code of the models may run. ``plugin``: a Python file that is run
    for its methods. Raises `MismatchError` if the merge
    is not the one with that digest: a log that is resumed would mix two merges.
    """
    from harness_adapters.mounted import mounted  # seconds; every run imports this module
    from merge_plugins.plugins import load_plugins
    from merge_plugins.recipe.short_form_values import plugins

    end_with_the_message("inspect_ai._cli.main")
    load_plugins(plugins(plugin))
    given, _, wanted = model_name.partition("@")
    merge = mounted(given, trust_remote_code=trust_remote_code)
    if wanted not in ("", merge.digest):
        raise MismatchError(
            f"{given} had the digest {wanted} and now has {merge.digest}: the recipe or a file of "
            f"its models changed. Run the evaluation anew with --model merged/{given}"
        )
    arguments |= {"model_path": str(merge.folder), "trust_remote_code": True}  # our few lines
    return get_model(
        f"hf/{given}@{merge.digest}",
        base_url=base_url,
        api_key=api_key,
        config=config or GenerateConfig(),
        memoize=False,  # ours is
        **arguments,
    ).api


def provider() -> Callable[..., ModelAPI]:
    """Return the function that builds a model of this provider."""
    return merged


modelapi("merged")(provider)
