"""GSM8K, MATH, HumanEval and MBPP: where their rows are, and when a program solves a problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness_adapters.tasks.local_data import Source, load
from harness_adapters.tasks.scoring.code import humaneval_program, mbpp_program
from harness_adapters.tasks.scoring.execution import runs
from merge_plugins.errors import DataError

Row = Mapping[str, Any]

GSM8K = Source(
    file="gsm8k_test.jsonl",
    dataset="openai/gsm8k",
    revision="740312add88f781978c0658806c59bc2815b9866",
    configs=("main",),
    split="test",
    columns=("question", "answer"),
)
MATH = Source(
    file="MATH_test.jsonl",
    dataset="EleutherAI/hendrycks_math",
    revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
    configs=(
        *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
        *("number_theory", "prealgebra", "precalculus"),
    ),
    split="test",
)
HUMANEVAL = Source(
    file="HumanEval.jsonl",
    dataset="openai/openai_humaneval",
    revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    configs=("openai_humaneval",),
    split="test",
    columns=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
)
MBPP = Source(
    file="mbpp.test.jsonl",
    dataset="google-research-datasets/mbpp",
    revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    configs=("full",),
    split="test",
    columns=("task_id", "text", "code", "test_list"),
)


def gsm8k() -> list[dict[str, Any]]:
    """Return the test questions; ``answer`` is a solution that ends in ``#### 18``."""
    return _columns(GSM8K)


def math() -> list[dict[str, Any]]:
    """Return the test problems as ``question`` and ``answer``, a solution with a ``\\boxed{}``.

    MergeLM's file calls them ``instruction`` and ``output``, the hub ``problem`` and ``solution``.
    """
    rows = load(MATH)
    for question, answer in (("instruction", "output"), ("problem", "solution")):
        if all(question in row and answer in row for row in rows):
            return [{"question": row[question], "answer": row[answer]} for row in rows]
    raise DataError(
        f"{MATH.file}: each row must have 'instruction' and 'output', or 'problem' and 'solution'; "
        f"the first has {', '.join(map(repr, rows[0]))}."
    )


def humaneval() -> list[dict[str, Any]]:
    """Return the problems."""
    return _columns(HUMANEVAL)


def mbpp() -> list[dict[str, Any]]:
    """Return the test problems."""
    return _columns(MBPP)


def solves_humaneval(row: Row, completion: str) -> bool:
    """Run the problem's tests on a completion; call only where the user allowed it."""
    program = humaneval_program(completion)
    return runs(f"{row['prompt']}{program}\n{row['test']}\ncheck({row['entry_point']})")


def solves_mbpp(row: Row, completion: str) -> bool:
    """Run the problem's tests on a completion; call only where the user allowed it.

    Like bigcode's harness, which scored it for the seeds, without ``test_setup_code``: only
    problem 367 has some.
    """
    return runs("\n".join([mbpp_program(completion), *row["test_list"]]))


def _columns(source: Source) -> list[dict[str, Any]]:
    return [{name: row[name] for name in source.columns} for row in load(source)]
