"""The correlations that GLUE reports of STS-B."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.stats import pearsonr, spearmanr

NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
Pair = tuple[float, float]


def pair(row: Mapping[str, Any], responses: Sequence[str]) -> dict[str, Pair]:
    """Pair the score of two sentences with the first number of an answer; 0 if it has none."""
    found = NUMBER.search(responses[0])
    both = float(row["label"]), float(found[0]) if found else 0.0
    return {"pearson": both, "spearman": both}


def pearson(pairs: Sequence[Pair]) -> float:
    """Correlate answers with scores; 0 for answers that are all equal, as Matthews' is."""
    return _correlated(pearsonr, pairs)


def spearman(pairs: Sequence[Pair]) -> float:
    """Correlate the ranks of answers with those of scores; 0 for answers that are all equal."""
    return _correlated(spearmanr, pairs)


def _correlated(measure: Callable[..., Any], pairs: Sequence[Pair]) -> float:
    scores, answers = zip(*pairs, strict=True)
    if len({*scores}) < 2 or len({*answers}) < 2:
        return 0.0
    return float(measure(scores, answers).statistic)
