"""List the results that a run of OpenCompass lacks: it exits with 0 all the same."""

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
    """A missing result: a model and a data set of a run, the reason, and its log if any."""

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
    """Yield the missing results of a run.

    ``pairs``: abbrs of a model and a data set each; ``parts``: for each data set that was split,
    abbrs of its pieces; ``scored``: whether scores are expected, or only predictions.
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
    """Find a data set, or a piece of it, without predictions; return its abbr or None.

    OpenCompass scores the pieces that exist as if they were the whole.
    """
    if (folder / f"{dataset}.json").is_file():
        return None
    if not parts and (folder / f"{dataset}_0.json").is_file():
        return None  # cut by a partitioner that is not ours
    return next((p for p in parts or [dataset] if not (folder / f"{p}.json").is_file()), None)


def _unscored(folder: Path, model: str, dataset: str) -> str | None:
    """Find why a model has no score on a data set; a judge's result is filed under both names."""
    folders = [folder / model, *folder.glob(f"{model}_judged-by--*")]
    files = [each / f"{dataset}.json" for each in folders]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return "no score"
    result: Any = json.loads(file.read_text(encoding="utf-8"))
    error = result.get("error") if isinstance(result, Mapping) else None
    return f"its evaluator says {error}" if error else None


def _log(folder: Path, dataset: str) -> Path | None:
    """Find the log of a data set, or else the newest one: its task may be named after another."""
    own = folder / f"{dataset}.out"
    if own.is_file():
        return own
    return max(folder.glob("*.out"), key=lambda file: file.stat().st_mtime, default=None)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL:])
