"""Score merges with OpenCompass, each made as it loads.

In a run config, `MergedCausalLM` and its siblings stand where a stock model class does::

    from harness_adapters.opencompass import MergedCausalLM

    models = [dict(type=MergedCausalLM, recipe="merge.yaml", max_out_len=64)]

``python -m harness_adapters.opencompass run_config.py`` runs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from harness_adapters.opencompass.configs import merged_model
from merge_plugins.errors import MergeError
from merge_plugins.installing import to_install

__all__ = [
    "MergedCausalLM",
    "MergedVLLM",
    "MergedVLLMwithChatTemplate",
    "MergedWithChatTemplate",
    "merged_model",
]


def __getattr__(name: str) -> Any:
    # OpenCompass takes seconds to import; a config with a typo must fail before that.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "vllm" if "VLLM" in name else "models"
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as exc:  # OpenCompass itself would report a missing registry entry
        raise MergeError(
            f"OpenCompass cannot be imported: {exc}. With Python 3.12 or older, in an environment "
            f"of its own: {to_install('opencompass')}"
        ) from exc
