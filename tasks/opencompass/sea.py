"""What the South-East-Asian configs name: the data set and the evaluators.

The functions under them are those that lm-eval's tasks call, so one prediction has one score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from opencompass.datasets.base import BaseDataset
from opencompass.openicl.icl_evaluator import BaseEvaluator

from harness_adapters.tasks.scoring import sea
from harness_adapters.tasks.sea.rows import rows


class SeaDataset(BaseDataset):
    """Rows of one of Sailor's files, from MERGE_PLUGINS_DATA or from the hub."""

    @staticmethod
    def load(path: str) -> Dataset:
        """Return the rows; ``path`` is relative to the folder ``sea`` of the data."""
        return Dataset.from_list(rows(path))


class _Evaluator(BaseEvaluator):
    """Percentages over all items of what a function says of one."""

    scores: Callable[[str, Any], Mapping[str, float]]

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        """Return each metric in percent, and every item's share of it."""
        if len(predictions) != len(references):
            return {"error": f"{len(predictions)} predictions for {len(references)} references"}
        pairs = list(zip(predictions, references, strict=True))
        each = [type(self).scores(str(prediction), answer) for prediction, answer in pairs]
        means = {
            metric.upper(): 100 * sum(item[metric] for item in each) / len(each)
            for metric in each[0]
        }
        details = [
            {"pred": prediction, "answer": answer, "correct": bool(item["em"]), **item}
            for (prediction, answer), item in zip(pairs, each, strict=True)
        ]
        return {**means, "details": details}


class AnswerEvaluator(_Evaluator):
    """EM and F1 against one answer; Thai words as pythainlp cuts them."""

    scores = staticmethod(sea.answer_scores)


class AnyAnswerEvaluator(_Evaluator):
    """EM and F1 against the best of several answers."""

    scores = staticmethod(sea.any_answer_scores)


class LetterEvaluator(_Evaluator):
    """EM of the first option, A to D, that a prediction names."""

    scores = staticmethod(sea.letter_scores)


class DigitEvaluator(_Evaluator):
    """EM of the first option, 1 to 5 in Arabic or Thai digits, that a prediction names."""

    scores = staticmethod(sea.digit_scores)


class ChoiceEvaluator(_Evaluator):
    """EM of the label with the lowest perplexity."""

    scores = staticmethod(sea.choice_scores)
