"""A search in a folder: what it may draw, how that is scored, and what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError
from merge_plugins.search import racing
from merge_plugins.search.history import Sampler
from merge_plugins.search.ledger import Ledger, Trial
from merge_plugins.search.objective import Objective
from merge_plugins.search.ranking import Ranking, Scores, on
from merge_plugins.search.samplers import sampler
from merge_plugins.search.settings import SearchFile, Settings
from merge_plugins.search.space import Space
from merge_plugins.search.starts import Start, starts
from merge_plugins.search.workers import Claims


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
    ) -> Study:
        """Open a search, or raise `MergeError`; reads headers of models, scores nothing."""
        space, settings = Space.parse(file.recipe, file.folder), file.settings
        open_merge(space.check().trusting(None))
        ranking = Ranking(objective.goals, settings.pareto)
        chosen = sampler(settings.sampler, space, ranking, settings.seed)
        documents = objective.documents
        if (settings.racing or settings.subset) and not any(documents.values()):
            raise MergeError("search: racing and subset need scores that are means of documents")
        split = racing.Split.of(documents, settings.tune, settings.seed)
        goals = {name: asdict(goal) for name, goal in objective.goals.items()}
        header = {"search": file.identity, "scores": objective.identity, "goals": goals}
        ledger = Ledger.open(folder, header)
        return cls(space, objective, ranking, settings, ledger, chosen, split, trust_remote_code)

    @cached_property
    def claims(self) -> Claims:
        """The claims of all processes that share the folder."""
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
        numbers = [i for i, start in enumerate(self.starts) if start.is_source]
        scores = [t.scores for t in self.scored if t.number in numbers and t.state == "complete"]
        if len(scores) < len(numbers):
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
