"""Score one candidate: on which documents, in one go or in rounds, and what is noted of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from merge_plugins.errors import MergeError
from merge_plugins.recipe import Recipe
from merge_plugins.search import racing
from merge_plugins.search.ledger import State, Trial
from merge_plugins.search.objective import Objective
from merge_plugins.search.ranking import Ranking, Scores, merged
from merge_plugins.search.workers import MOST_ATTEMPTS, Candidate

VERSIONED = (
    *("merge-plugins", "torch", "transformers", "sentence-transformers", "lm-eval", "mteb"),
    "optuna",
)


@dataclass(frozen=True)
class Scorer:
    """Scores candidates in this process."""

    objective: Objective
    ranking: Ranking
    trust_remote_code: bool | None = None

    def score(
        self,
        candidate: Candidate,
        documents: racing.Documents,
        rival: Callable[[], Scores | None],
    ) -> Trial:
        """Score a candidate; a recipe that cannot be merged is a trial that failed.

        ``rival``: returns the scores of the best so far if candidates race, else None.
        """
        if candidate.attempts > MOST_ATTEMPTS:
            error = f"begun {MOST_ATTEMPTS} times, and its process ended each time; see its log"
            return trial_of(candidate, "failed", error=error)
        started = time.time()
        recipe = Recipe.from_mapping(candidate.recipe).trusting(self.trust_remote_code)
        outcome: dict[str, Any]
        try:
            scores, state = self._in_rounds(recipe, documents, rival if candidate.params else _none)
            outcome = {"state": state, "scores": scores}
            if bad := [name for name, score in scores.items() if score.value != score.value]:
                outcome = {"state": "failed", "error": f"{', '.join(bad)} is not a number"}
        except MergeError as exc:
            outcome = {"state": "failed", "error": str(exc)}
        seconds = round(time.time() - started, 3)
        return trial_of(candidate, **outcome, started=started, seconds=seconds)

    def _in_rounds(
        self, recipe: Recipe, documents: racing.Documents, rival: Callable[[], Scores | None]
    ) -> tuple[Scores, State]:
        if self._is_everything(documents) and rival() is None:
            return self.objective.score(recipe), "complete"
        parts = [documents] if rival() is None else racing.rounds(documents)
        scores: Scores = {}
        for n, part in enumerate(parts, start=1):
            scores = merged(scores, self.objective.score(recipe, part))
            best = rival() if n < len(parts) else None  # others may have found a better one
            if best and racing.cannot_win(scores, best, self.ranking, len(parts) - 1):
                return scores, "stopped"
        return scores, "complete"

    def _is_everything(self, documents: racing.Documents) -> bool:
        whole = self.objective.documents
        return all(len(documents.get(goal, ())) == len(ids) for goal, ids in whole.items())


def _none() -> None:
    return None


def trial_of(candidate: Candidate, state: State, **outcome: Any) -> Trial:
    """Note what came of a candidate."""
    return Trial(
        **{
            "number": candidate.number,
            "state": state,
            "origin": candidate.origin,
            "recipe": candidate.recipe,
            "digest": candidate.digest,
            "params": candidate.params,
            "started": time.time(),
            "worker": worker_name(),
            "versions": versions(),
            **outcome,
        }
    )


def worker_name() -> str:
    """Name this process for the ledger."""
    return f"{socket.gethostname()}:{os.getpid()}"


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of what scores depend on, where it is installed."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
