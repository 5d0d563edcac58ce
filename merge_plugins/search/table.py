"""What is seen while a search runs: a row for each candidate, and what came of it in the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from merge_plugins.search.ledger import Trial
from merge_plugins.search.naming import plain
from merge_plugins.search.objective import Score
from merge_plugins.search.ranking import on
from merge_plugins.search.study import Study

COLUMNS = ("candidate", "score", "best", "seconds", "ends", "what")
WIDTHS = (9, 9, 9, 7, 11, 4)
RECENT = 20
"""Candidates by whose time the end is expected."""


class Table:
    """Rows of a search, printed as they come."""

    def __init__(self, study: Study, n_workers: int = 1) -> None:
        self.study = study
        self.n_workers = n_workers

    def head(self) -> str:
        """Write the table's first two rows."""
        rule = ["-" * width for width in WIDTHS[:-1]]
        return "\n".join((_line(COLUMNS), _line([f"{dashes[:-1]}:" for dashes in rule] + ["----"])))

    def row(self, trial: Trial) -> str:
        """Write a candidate's row."""
        score = self.shown(trial)
        best = next(iter(self.study.best()), None)
        cells = (
            str(trial.number),
            score,
            self.shown(best) if best else "",
            f"{trial.seconds:.1f}",
            self._end(),
            what(trial),
        )
        return _line(cells)

    def shown(self, trial: Trial) -> str:
        """Write a candidate's score, or what came of it instead."""
        if trial.state in ("failed", "stopped", "repeat"):
            return trial.state
        return f"{self._value(trial):.4f}"

    def _value(self, trial: Trial) -> float:
        total = self.study.ranking.total(on(trial.scores, self.study.tuned))
        return self.study.ranking.shown(total)

    def _end(self) -> str:
        """Expect the end of the search, from what the last candidates took."""
        study, settings = self.study, self.study.settings
        ends = []
        if settings.trials is not None and study.scored:
            last = study.scored[-RECENT:]
            left = settings.trials - len(study.scored)
            ends.append(left * sum(t.seconds for t in last) / len(last) / self.n_workers)
        if settings.hours is not None:
            ends.append(3600 * settings.hours - study.spent())
        if not ends:
            return ""
        seconds = max(min(ends), 0)
        form = "%H:%M" if seconds < 12 * 3600 else "%a %H:%M"
        return f"{seconds:.0f} s" if seconds < 120 else time.strftime(
            form, time.localtime(time.time() + seconds)
        )  # fmt: skip


def what(trial: Trial) -> str:
    """Describe a candidate: its parameters, or the model that it is."""
    if trial.error:
        return trial.error.replace("\n", " ")
    shown = params(trial.params)
    if not shown:
        return trial.origin
    named = trial.origin in ("equal weights", "defaults")
    return f"{trial.origin}: {shown}" if named else shown


def params(values: Mapping[str, Any]) -> str:
    """Write parameters in one line."""
    return ", ".join(f"{name}={plain(value)}" for name, value in values.items())


def plus_minus(score: Score | None) -> str:
    """Write a score with its standard error, and on how many documents it is."""
    if score is None:
        return ""
    error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
    n = f" ({len(score.documents)})" if score.documents else ""
    return f"{score.value:.4f}{error}{n}"


def _line(cells: Sequence[str]) -> str:
    padded = (f"{cell:>{width}}" for cell, width in zip(cells[:-1], WIDTHS, strict=False))
    return "|" + "|".join(padded) + f"| {cells[-1]}"
