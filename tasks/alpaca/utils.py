"""What the YAML files name: rows, prompts and scores of the alpaca-prompt tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from harness_adapters.tasks import benchmarks
from harness_adapters.tasks.scoring import code, maths

Row = Mapping[str, Any]
Splits = dict[str, Dataset]


def gsm8k(**_: object) -> Splits:
    """GSM8K's 1,319 test questions."""
    return _test_split(benchmarks.gsm8k())


def math(**_: object) -> Splits:
    """MATH's 5,000 test problems."""
    return _test_split(benchmarks.math())


def humaneval(**_: object) -> Splits:
    """HumanEval's 164 problems."""
    return _test_split(benchmarks.humaneval())


def mbpp(**_: object) -> Splits:
    """MBPP's 500 test problems, 11 to 510."""
    return _test_split(benchmarks.mbpp())


def maths_prompt(row: Row) -> str:
    return maths.prompt(row["question"])


def gsm8k_scores(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return maths.gsm8k_scores(responses[0], row["answer"])


def math_scores(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return maths.math_scores(responses[0], row["answer"])


def humaneval_prompt(row: Row) -> str:
    return code.humaneval_prompt(row["prompt"])


def humaneval_scores(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return {"pass@1": float(benchmarks.solves_humaneval(row, responses[0]))}


def mbpp_prompt(row: Row) -> str:
    return code.mbpp_prompt(row)


def mbpp_scores(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return {"pass@1": float(benchmarks.solves_mbpp(row, responses[0]))}


def _test_split(rows: list[dict[str, Any]]) -> Splits:
    return {"test": Dataset.from_list(rows)}
