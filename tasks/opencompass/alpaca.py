"""What the alpaca-prompt configs name: the data set and the evaluators.

Rows, prompts and scores are those of the lm-eval tasks of the same names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from opencompass.datasets.base import BaseDataset
from opencompass.openicl.icl_evaluator import BaseEvaluator

from harness_adapters.tasks import benchmarks
from harness_adapters.tasks.scoring import code, maths
from merge_plugins.errors import MergeError

CONSENT = "HF_ALLOW_CODE_EVAL"
"""The variable that lm-eval's own code tasks need too; OpenCompass has no flag for it."""

Row = Mapping[str, Any]
Scores = Callable[[Row, str], Mapping[str, float]]
PROMPTS: Mapping[str, tuple[Callable[[], list[dict[str, Any]]], Callable[[Row], str]]] = {
    "gsm8k": (benchmarks.gsm8k, lambda row: maths.prompt(row["question"])),
    "math": (benchmarks.math, lambda row: maths.prompt(row["question"])),
    "humaneval": (benchmarks.humaneval, lambda row: code.humaneval_prompt(row["prompt"])),
    "mbpp": (benchmarks.mbpp, code.mbpp_prompt),
}
"""Of each benchmark its rows, and the prompt of a row."""


class AlpacaDataset(BaseDataset):
    """Prompts of one benchmark, and its rows as JSON; from MERGE_PLUGINS_DATA or from the hub."""

    @staticmethod
    def load(path: str) -> Dataset:
        """Return the rows of a benchmark in `PROMPTS`."""
        rows, prompt = PROMPTS[path]
        return Dataset.from_list(
            [{"alpaca_prompt": prompt(row), "alpaca_row": json.dumps(row)} for row in rows()]
        )


class _Evaluator(BaseEvaluator):
    """Percentages over all rows of what a function says of one completion."""

    scores: Scores

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        """Return each metric in percent, and every row's share of it."""
        if len(predictions) != len(references):
            return {"error": f"{len(predictions)} predictions for {len(references)} references"}
        pairs = [(json.loads(row), str(said)) for row, said in zip(references, predictions)]  # noqa: B905
        each = [type(self).scores(row, said) for row, said in pairs]
        means = {name: 100 * sum(one[name] for one in each) / len(each) for name in each[0]}
        return {**means, "details": [dict(one) for one in each]}


class Gsm8kEvaluator(_Evaluator):
    """Both readings of the answer to a question of GSM8K."""

    scores = staticmethod(lambda row, said: maths.gsm8k_scores(said, row["answer"]))


class MathEvaluator(_Evaluator):
    """Both readings of the answer to a problem of MATH."""

    scores = staticmethod(lambda row, said: maths.math_scores(said, row["answer"]))


class _CodeEvaluator(_Evaluator):
    """Runs programs that a model wrote, when the user allowed it."""

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        """Return the percentage that pass their tests; raises where the user did not allow it."""
        if os.environ.get(CONSENT) != "1":
            raise MergeError(
                "this data set runs programs that the model writes; set the environment variable "
                f"{CONSENT}=1 if you accept that, or run the command in a container"
            )
        return super().score(predictions, references)


class HumanevalEvaluator(_CodeEvaluator):
    """Share of HumanEval's problems solved by the one completion."""

    scores = staticmethod(
        lambda row, said: {"pass@1": float(benchmarks.solves_humaneval(row, said))}
    )


class MbppEvaluator(_CodeEvaluator):
    """Share of MBPP's problems solved by the one completion."""

    scores = staticmethod(lambda row, said: {"pass@1": float(benchmarks.solves_mbpp(row, said))})
