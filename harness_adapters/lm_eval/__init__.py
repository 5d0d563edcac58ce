"""``lm_eval --model merged``: lm-evaluation-harness on merges, made as they load."""

from __future__ import annotations

from typing import Any

__all__ = ["Evaluator", "MergedLM"]


def __getattr__(name: str) -> Any:
    # The start-up hook imports `discovery` from here in every process that imports lm-eval; it
    # must not wait for lm-eval's model classes.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Evaluator":
        from harness_adapters.lm_eval.evaluator import Evaluator

        return Evaluator
    from harness_adapters.lm_eval.model import MergedLM

    return MergedLM
