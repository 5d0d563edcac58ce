"""Score the best candidates again, whole and by the ordinary path, before anything is claimed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from merge_plugins.recipe import Recipe
from merge_plugins.search.ledger import Trial
from merge_plugins.search.ranking import Scores, on
from merge_plugins.search.scoring import versions, worker_name
from merge_plugins.search.study import Study

Whole = Callable[[Recipe], Scores]
"""Scores a recipe on all documents as if there had been no search."""


@dataclass(frozen=True)
class Winner:
    """A candidate that was scored again."""

    trial: Trial
    tune: Scores
    """On the documents that were looked at while tuning, before any subset."""
    held_out: Scores | None
    """On the others; None if there are none."""


def rerun(study: Study, whole: Whole) -> Iterator[Winner]:
    """Score the best again that were not yet; yield each of them."""
    done = {trial.same_as for trial in study.ledger.trials if trial.state == "rerun"}
    for trial in study.best()[: study.settings.rerun]:
        if trial.number not in done:
            started = time.time()
            recipe = Recipe.from_mapping(trial.recipe).trusting(study.trust_remote_code)
            scores = whole(recipe)
            with study.ledger.lock():
                study.ledger.append(_again(study, trial, scores, started))
        yield from (w for w in winners(study) if w.trial.number == trial.number)


def _again(study: Study, trial: Trial, scores: Scores, started: float) -> Trial:
    return Trial(
        number=max(t.number for t in study.ledger.read()) + 1,
        state="rerun",
        origin=trial.origin,
        recipe=trial.recipe,
        digest=trial.digest,
        params=trial.params,
        scores=scores,
        started=started,
        seconds=round(time.time() - started, 3),
        worker=worker_name(),
        same_as=trial.number,
        versions=versions(),
    )


def winners(study: Study) -> list[Winner]:
    """List what was scored again, ordered by the documents that were tuned on."""
    by_number = {trial.number: trial for trial in study.ledger.trials}
    whole = {by_number[t.same_as].number: t.scores for t in study.ledger.trials
             if t.state == "rerun" and t.same_as in by_number}  # fmt: skip
    split = study.split
    tuned = {number: on(scores, split.tune) for number, scores in whole.items()}
    order = sorted(tuned, key=lambda number: -study.ranking.total(tuned[number]))
    return [
        Winner(
            by_number[number],
            tuned[number],
            None if split.is_whole else _others(study, whole[number]),
        )
        for number in order
    ]


def _others(study: Study, scores: Scores) -> Scores:
    rest = study.split.held_out
    return on({name: score for name, score in scores.items() if rest.get(name)}, rest)
