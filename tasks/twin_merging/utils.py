"""The one score that Twin-Merging reports of CNN/DailyMail."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rouge_score.rouge_scorer import RougeScorer


def rouge2(row: Mapping[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """F-measure of stemmed bigrams, as HELM takes it; 0 to 1."""
    return {"rouge2": _scorer().score(row["highlights"], responses[0])["rouge2"].fmeasure}


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rouge2"], use_stemmer=True)
