"""The loop of a search: claim a candidate, score it, note it, until the budget is spent.

Any number of processes run it on one folder. Whoever chooses what comes next holds the ledger's
lock, so no merge is scored twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_plugins import identity
from merge_plugins.errors import MergeError
from merge_plugins.search.history import History
from merge_plugins.search.ledger import Trial
from merge_plugins.search.scoring import Scorer, trial_of
from merge_plugins.search.space import Point
from merge_plugins.search.study import Study
from merge_plugins.search.workers import Candidate, Claim

MOST_REPEATS = 100
"""Merges in a row that were scored before, after which a space counts as exhausted."""
MOST_FAILURES = 4
"""Candidates that fail, and nothing but, after which a search gives up."""
PAUSE = 0.2
"""Seconds between two looks at what others are doing."""


def run(study: Study, stop: Callable[[], bool] = lambda: False) -> Iterator[Trial]:
    """Score candidates until the budget is spent; yield each when it is in the ledger.

    ``stop``: asked between two candidates, where to stop leaves nothing half done.
    """
    scorer = Scorer(study.objective, study.ranking, study.trust_remote_code)
    while not stop():
        with study.ledger.lock():
            study.ledger.read()
            running = study.claims.running()
            claim = study.claims.abandoned() or Choice(study, running).next()
        if claim is None and not running:
            return
        if claim is None:  # others are scoring the last ones; one of them may be killed
            time.sleep(PAUSE)
            continue
        try:
            trial = scorer.score(claim.candidate, study.tuned, study.rival)
            _note(study, trial, claim)
        except BaseException:
            claim.drop()
            raise
        yield trial


def _note(study: Study, trial: Trial, claim: Claim) -> None:
    with study.ledger.lock():
        study.ledger.read()
        if trial.number not in {t.number for t in study.ledger.trials}:
            study.ledger.append(trial)
        claim.release()


class ImpossibleError(Exception):
    """A sampler proposed a recipe that cannot be."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.error)
        self.trial = trial


@dataclass(frozen=True)
class Choice:
    """What to score next, while others score what is running. The ledger's lock must be held."""

    study: Study
    running: Sequence[Candidate]

    def next(self) -> Claim | None:
        """Claim the next candidate; None if the budget is spent, or others must finish first."""
        study, settings = self.study, self.study.settings
        n_taken = len(study.scored) + len(self.running)
        if settings.trials is not None and n_taken >= settings.trials:
            return None
        if settings.hours is not None and study.spent() >= 3600 * settings.hours:
            return None
        self._refuse_only_failures()
        for _ in range(MOST_REPEATS):
            try:
                candidate = self._proposed()
            except ImpossibleError as exc:
                study.ledger.append(exc.trial)
                continue
            if candidate is None:
                return None
            first = self._first_of(candidate.digest)
            if first is None:
                return study.claims.claim(candidate)
            if first in self._running_numbers:
                return None  # the same merge is being scored: learn from it first
            study.ledger.append(trial_of(candidate, "repeat", same_as=first))
        return None

    @property
    def _running_numbers(self) -> set[int]:
        return {candidate.number for candidate in self.running}

    def _first_of(self, digest: str) -> int | None:
        known = {t.digest: t.number for t in reversed(self.study.scored)}
        return {**known, **{c.digest: c.number for c in self.running}}.get(digest)

    def _proposed(self) -> Candidate | None:
        """Draw a candidate: those to start with first, then the sampler's."""
        study = self.study
        taken = {t.number for t in study.ledger.trials} | self._running_numbers
        for number, start in enumerate(study.starts):
            if number not in taken:
                return self._candidate(number, start.origin, start.mapping, start.params)
            if study.settings.subset and start.is_source and number in self._running_numbers:
                return None  # on its scores depends what tuning looks at
        params = [candidate.params for candidate in self.running if candidate.params]
        point = study.sampler.propose(History(study.ledger.trials, params))
        if point is None:
            return None
        number = max(taken, default=-1) + 1
        return self._candidate(number, study.settings.sampler, point.mapping, point.params)

    def _candidate(
        self, number: int, origin: str, mapping: Mapping[str, Any], params: Mapping[str, Any]
    ) -> Candidate:
        study = self.study
        try:
            recipe = study.space.recipe(Point(params, mapping)).trusting(study.trust_remote_code)
            digest = identity.digest(recipe)
        except MergeError as exc:  # values that go, each by itself, and do not go together
            candidate = Candidate(number, origin, mapping, "", params)
            raise ImpossibleError(trial_of(candidate, "failed", error=str(exc))) from exc
        return Candidate(number, origin, recipe.as_dict(), digest, params)

    def _refuse_only_failures(self) -> None:
        scored = self.study.scored
        if len(scored) >= MOST_FAILURES and all(t.state == "failed" for t in scored):
            raise MergeError(
                f"{self.study.ledger.folder}: the first {len(scored)} candidates all failed, and "
                f"others would. The last one: {scored[-1].error}"
            )
