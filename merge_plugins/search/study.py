"""A search in a folder: what it may draw, how that is scored, and what was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe
from merge_plugins.recipe.guests import guests
from merge_plugins.search import racing
from merge_plugins.search.database import DatabaseClaims, DatabaseLedger
from merge_plugins.search.history import Sampler
from merge_plugins.search.ledger import FOLDER, Ledger, Trial
from merge_plugins.search.objective import Goal, Objective, Score
from merge_plugins.search.ranking import Ranking, Scores, on
from merge_plugins.search.samplers import Random, sampler
from merge_plugins.search.settings import SearchFile, Settings
from merge_plugins.search.space import Space
from merge_plugins.search.starts import Start, starts
from merge_plugins.search.workers import Claims


@dataclass(frozen=True)
class Recorded:
    """The objective of a search that is over, as far as its ledger has it."""

    goals: Mapping[str, Goal]
    identity: str
    documents: Mapping[str, Sequence[str]]

    def score(
        self, recipe: Recipe, documents: Mapping[str, Sequence[str]] | None = None
    ) -> Mapping[str, Score]:
        """Refuse to score."""
        raise MergeError("this search is only looked at; run 'merge-plugins search' to go on")

    def close(self) -> None:
        """Free nothing."""


@dataclass
class Study:
    """A search, new or begun; `merge_plugins.search.loop.run` goes on with it."""

    space: Space
    objective: Objective
    ranking: Ranking
    settings: Settings
    ledger: Ledger
    sampler: Sampler
    split: racing.Split
    trust_remote_code: bool | None = None

    @classmethod
    def open(
        cls,
        file: SearchFile,
        folder: Path,
        objective: Objective,
        trust_remote_code: bool | None = None,
        notes: Sequence[str] = (),
        storage: str | None = None,
    ) -> Study:
        """Open a search, or raise `MergeError`; reads headers of models, scores nothing.

        ``notes``: what a reader of its report must know of the scores. ``storage``: URL of a
        PostgreSQL database, for hosts that share no folder.
        """
        space, settings = Space.parse(file.recipe, file.folder), file.settings
        recipe = space.check().trusting(None)
        open_merge(recipe)
        ranking = Ranking(objective.goals, settings.pareto)
        chosen = sampler(settings.sampler, space, ranking, settings.seed)
        documents = {goal: list(objective.documents.get(goal, ())) for goal in objective.goals}
        _check_documents(settings, documents)
        split = racing.Split.of(documents, settings.tune, settings.seed)
        header = {
            "search": file.identity,
            "scores": objective.identity,
            "goals": {name: asdict(goal) for name, goal in objective.goals.items()},
            "documents": documents,
            "sources": sum(start.is_source for start in starts(space)),
            "notes": list(notes),
            FOLDER: str(file.folder),
        }
        code = {
            m.plugin: m.version
            for m in (*space.methods, *guests(recipe))
            if m.plugin in registry().files
        }
        header |= {"plugins": code} if code else {}  # a candidate's score is of that code
        if storage is None:
            ledger = Ledger.open(folder, header)
        else:
            ledger = DatabaseLedger.shared(folder, header, storage)
        return cls(space, objective, ranking, settings, ledger, chosen, split, trust_remote_code)

    @classmethod
    def recorded(cls, folder: Path) -> Study:
        """Open the search of a folder to look at it; it can score nothing."""
        ledger = Ledger.existing(folder)
        header = ledger.header
        content = {**header["search"]}
        content["search"] = {**content["search"], "budget": {"trials": len(ledger.trials)}}
        file = SearchFile.parse(content, Path(header[FOLDER]))
        space, settings = Space.parse(file.recipe, file.folder), file.settings
        objective = Recorded(
            {name: Goal(**goal) for name, goal in header["goals"].items()},
            header["scores"],
            header["documents"],
        )
        ranking = Ranking(objective.goals, settings.pareto)
        split = racing.Split.of(objective.documents, settings.tune, settings.seed)
        return cls(space, objective, ranking, settings, ledger, Random(space), split)

    @cached_property
    def claims(self) -> Claims | DatabaseClaims:
        """The claims of all processes that share the search."""
        if isinstance(self.ledger, DatabaseLedger):
            return DatabaseClaims(self.ledger.database)
        return Claims(self.ledger.folder / "running")

    @cached_property
    def starts(self) -> Sequence[Start]:
        """The candidates that are scored first; they bear the first numbers."""
        return starts(self.space)

    @property
    def scored(self) -> list[Trial]:
        """Trials that count to the budget."""
        return [t for t in self.ledger.trials if t.state not in ("repeat", "rerun")]

    @property
    def complete(self) -> list[tuple[Trial, Scores]]:
        """Trials that were scored on all documents that tuning looks at, with those scores."""
        tuned = self.tuned
        return [(t, on(t.scores, tuned)) for t in self.scored if t.state == "complete"]

    def best(self) -> list[Trial]:
        """Order complete trials, best first; in Pareto's case those that nothing dominates."""
        return self.ranking.ordered(self.complete)

    def rival(self) -> Scores | None:
        """Return the scores that a candidate must beat, if candidates race."""
        best = self.best() if self.settings.racing else []
        return best[0].scores if best else None

    @property
    def tuned(self) -> racing.Documents:
        """The documents that tuning looks at: a subset, once the models were scored for it."""
        if self.settings.subset is None:
            return self.split.tune
        found = [t for t in self.scored if not t.params]
        scores = [trial.scores for trial in found if trial.state == "complete"]
        if len(found) < self.ledger.header["sources"]:
            return self.split.tune
        return racing.on_which_they_differ(scores, self.split.tune)

    def spent(self) -> float:
        """Return the seconds during which anyone was scoring, over all runs of the search."""
        spans = sorted((t.started, t.started + t.seconds) for t in self.ledger.trials)
        total, until = 0.0, 0.0
        for start, end in spans:
            total += max(end - max(start, until), 0.0)
            until = max(until, end)
        return total


def _check_documents(settings: Settings, documents: Mapping[str, Sequence[str]]) -> None:
    bare = [goal for goal, ids in documents.items() if not ids]
    if settings.racing and bare:
        raise MergeError(
            f"search: racing needs scores that are means of documents; {bare[0]} is none"
        )
    if (settings.subset or settings.tune is not None) and len(bare) == len(documents):
        raise MergeError("search: split and subset need scores that are means of documents")
