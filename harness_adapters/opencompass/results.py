"""What a run of OpenCompass should have left behind, and why it did not: its own status is 0."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAIL = 20
"""Lines of a log that are shown."""


@dataclass(frozen=True)
class Missing:
    """A model and a data set of a run that have no result."""

    model: str
    dataset: str
    why: str
    log: Path | None

    def __str__(self) -> str:
        return f"NO RESULT of {self.model} on {self.dataset}: {self.why}"


def missing(
    run: Path,
    pairs: Sequence[tuple[str, str]],
    parts: Mapping[str, Sequence[str]],
    *,
    scored: bool,
) -> Iterator[Missing]:
    """Yield what is not there of a run.

    ``pairs``: abbrs of a model and a data set each; ``parts``: abbrs of the pieces that a data
    set was cut into, if it was; ``scored``: whether results are expected, or only predictions.
    """
    for model, dataset in pairs:
        answers = run / "predictions" / model
        lacking = _unanswered(answers, dataset, parts.get(dataset, ()))
        if lacking:
            lost = f"no predictions{f' for {lacking}' if lacking != dataset else ''}"
            yield Missing(model, dataset, lost, _log(run / "logs" / "infer" / model, lacking))
        elif scored:
            why = _unscored(run / "results", model, dataset)
            if why:
                log = _log(run / "logs" / "eval" / model, dataset)
                yield Missing(model, dataset, why, log)


def _unanswered(folder: Path, dataset: str, parts: Sequence[str]) -> str | None:
    """Return the abbr of what has no predictions: a data set, or a piece of one.

    OpenCompass scores the pieces that are there as if they were the whole.
    """
    if (folder / f"{dataset}.json").is_file():
        return None
    if not parts and (folder / f"{dataset}_0.json").is_file():
        return None  # cut by a partitioner that is not ours
    return next((p for p in parts or [dataset] if not (folder / f"{p}.json").is_file()), None)


def _unscored(folder: Path, model: str, dataset: str) -> str | None:
    """Return why a model has no score on a data set; a judge's result is kept under both names."""
    folders = [folder / model, *folder.glob(f"{model}_judged-by--*")]
    files = [each / f"{dataset}.json" for each in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        return "no score"
    held: Any = json.loads(found.read_text(encoding="utf-8"))
    error = held.get("error") if isinstance(held, Mapping) else None
    return f"its evaluator says {error}" if error else None


def _log(folder: Path, dataset: str) -> Path | None:
    """Return the log of a data set, or of the task it was part of: the newest, named by another."""
    own = folder / f"{dataset}.out"
    if own.is_file():
        return own
    return max(folder.glob("*.out"), key=lambda file: file.stat().st_mtime, default=None)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL:])
