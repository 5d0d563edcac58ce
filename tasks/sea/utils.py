"""What the YAML files name: rows and scores of the South-East-Asian tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from harness_adapters.tasks.scoring import sea
from harness_adapters.tasks.sea import rows as sea_rows

Row = Mapping[str, Any]


def rows(file: str, **_: object) -> dict[str, Dataset]:
    """One of Sailor's files; lm-eval pours model arguments and metadata in as well."""
    return {"test": Dataset.from_list(sea_rows.rows(file))}


def answer(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return sea.answer_scores(responses[0], row["answer"])


def any_answer(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return sea.any_answer_scores(responses[0], row["answer"])


def letter(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return sea.letter_scores(responses[0], row["answer_text"])


def digit(row: Row, responses: Sequence[str]) -> dict[str, float]:
    return sea.digit_scores(responses[0], row["answer"])
