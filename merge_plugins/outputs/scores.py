"""The scores of a merge, for its card: what harnesses measured of the merge with its digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeAlias

from huggingface_hub import EvalResult

from merge_plugins.errors import MergeError

GROUP = "merge_plugins.results"
"""Entry points in this group read result files of harnesses: each is a `ScoreReader`."""


@dataclass(frozen=True)
class Score:
    """One number that a harness measured of the merge."""

    task: str
    metric: str
    """As the harness names it, with lm-eval's filter: "exact_match,strict-match"."""
    value: float
    stderr: float | None = None
    setting: str = ""
    """What else the number depends on: "5-shot, first 100 items"."""
    harness: str = ""


ScoreReader: TypeAlias = Callable[[Sequence[Path], str], Iterable[Score]]
"""From folders or files of results, and the digest of a merge, to the scores of that merge; raises
`MergeError` where there are none."""


def scores_of(results: Sequence[Path], digest: str) -> tuple[Score, ...]:
    """Read the scores of the merge with a digest, or raise `MergeError` if there are none."""
    if not results:
        return ()
    readers: list[ScoreReader] = [point.load() for point in entry_points(group=GROUP)]
    if not readers:
        raise MergeError("nothing that is installed reads results; install merge-plugins again")
    return tuple(score for reader in readers for score in reader(results, digest))


def as_table(scores: Sequence[Score]) -> str:
    """Write scores as a table of Markdown."""
    rows = ["| task | metric | score | ± | measured by |", "|---|---|---:|---:|---|"]
    for score in scores:
        error = "" if score.stderr is None else f"{score.stderr:.4f}"
        how = ", ".join(filter(None, (score.harness, score.setting)))
        metric = score.metric.removesuffix(",none")
        rows.append(f"| {score.task} | {metric} | {score.value:.4g} | {error} | {how} |")
    return "\n".join(rows)


def as_results(scores: Sequence[Score], kind: str) -> list[EvalResult]:
    """Convert scores to the hub's evaluation results; ``kind``: the model's pipeline tag."""
    return [
        EvalResult(
            task_type=kind,
            dataset_type=score.task,
            dataset_name=f"{score.task} ({score.setting})" if score.setting else score.task,
            dataset_config=score.setting or None,  # by which the hub tells them apart
            metric_type=score.metric.partition(",")[0],
            metric_name=score.metric.removesuffix(",none"),
            metric_value=score.value,
        )
        for score in scores
    ]
