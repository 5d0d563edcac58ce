"""A sample of tests/architectures.py, which merges every architecture in each layout of its files.

The whole list: ``python tests/architectures.py``, ten minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import Case, cases, outcome

SAMPLE = (
    ("causal", "mixtral"),  # experts fused while loading
    ("causal", "deepseek_v3"),
    ("causal", "jamba"),
    ("causal", "gpt_oss"),
    ("causal", "falcon"),
    ("image-text", "qwen2_5_vl"),  # other prefixes on disk
    ("image-text", "gemma3"),
    ("image-text", "llava"),
    ("seq2seq", "t5"),
    ("seq2seq", "bart"),
    ("masked", "roberta"),
    ("classifier", "qwen3"),
)


def case(kind: str, model_type: str) -> Case:
    return next(found for found in cases(kind) if found.model_type == model_type)


@pytest.mark.parametrize(("kind", "model_type"), SAMPLE, ids="-".join)
def test_a_merge_is_the_merge_by_hand_in_every_layout(
    kind: str, model_type: str, tmp_path: Path
) -> None:
    assert outcome(case(kind, model_type), tmp_path) == "equal"
