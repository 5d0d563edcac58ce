"""Read the scores of one merge from results, for its card: an `outputs.scores.ScoreReader`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness_adapters.commands.report_columns import parts_of_scored
from harness_adapters.commands.results import ReportError, read
from merge_plugins.outputs.scores import Score


def of_merge(results: Sequence[Path], digest: str) -> list[Score]:
    """Read what lm-eval and OpenCompass measured of the merge with a digest.

    Every metric of each task, without the parts of a group that has a score of its own. Raises
    `ReportError` if no result is of that merge: both harnesses name a merge by its digest.
    """
    found = read(results)
    own = [score for score in found.scores if score.model.endswith(f"-{digest}")]
    if not own:
        models = ", ".join(dict.fromkeys(score.model for score in found.scores))
        raise ReportError(
            f"no result is of the merge {digest}; there are results of {models}. Score it by "
            "lm_eval --model merged, or by OpenCompass, and name its results"
        )
    hidden = parts_of_scored(found)
    return [
        Score(
            score.task.name,
            score.metric,
            score.value,
            score.stderr,
            score.task.describe("").removeprefix(", "),
            "OpenCompass" if score.file.suffix == ".csv" else "lm-eval",
        )
        for score in own
        if score.task.name not in hidden
    ]
