"""Optuna's samplers over a study that is rebuilt from the ledger each time.

Nothing of Optuna's own is stored: a killed run leaves no trial running for ever, and no line that
cannot be read.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from merge_plugins.search.dimensions import Choice, Dimension, Value
from merge_plugins.search.history import History
from merge_plugins.search.ledger import Trial
from merge_plugins.search.ranking import Ranking
from merge_plugins.search.space import Point, Space

GENERATIONS = ("cmaes", "nsga2")
"""Samplers that note in each trial to which generation it belongs, when they propose it."""
STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from announcing each study, and what of it is experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(level)


@dataclass(frozen=True)
class ByOptuna:
    """One of Optuna's samplers."""

    name: str
    space: Space
    ranking: Ranking
    seed: int

    def propose(self, history: History) -> Point:
        """Rebuild the study, and ask it for the next point."""
        with quiet():
            points = history.points
            seed = zlib.crc32(f"{self.seed} {len(points)} {len(history.running)}".encode())
            study = optuna.create_study(
                directions=directions(self.ranking), sampler=make_sampler(self.name, seed)
            )
            if self.name in GENERATIONS:
                self._replay(study, points)
            else:
                study.add_trials([as_optuna(trial, self.space, self.ranking) for trial in points])
            for params in history.running:
                study.add_trial(
                    create_trial(
                        state=TrialState.RUNNING,
                        params=dict(params),
                        distributions=distributions(self.space, params),
                    )
                )
            return draw(self.space, study.ask())

    def _replay(self, study: optuna.Study, points: Sequence[Trial]) -> None:
        """Let the sampler propose every trial again, so that it notes its generation."""
        for point in points:
            study.enqueue_trial(dict(point.params))
            asked = study.ask()
            draw(self.space, asked)
            done = as_optuna(point, self.space, self.ranking)
            finished = done.state is TrialState.COMPLETE
            study.tell(asked, done.values if finished else None, state=done.state)


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Build Optuna's sampler; a dimension that it cannot relate to others is drawn by itself."""
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)


def directions(ranking: Ranking) -> list[StudyDirection]:
    """List a direction for each number of `Ranking.values`."""
    return [StudyDirection.MAXIMIZE] * (len(ranking.goals) if ranking.pareto else 1)


def draw(space: Space, trial: optuna.Trial) -> Point:
    """Draw the point that an Optuna trial proposes."""

    def suggest(asked: Dimension) -> Value:
        if isinstance(asked, Choice):
            return trial.suggest_categorical(asked.name, asked.labels)
        if asked.integer:
            step = int(asked.step or 1)
            return trial.suggest_int(
                asked.name, int(asked.low), int(asked.high), step=step, log=asked.log
            )
        return trial.suggest_float(
            asked.name, asked.low, asked.high, step=asked.step, log=asked.log
        )

    return space.draw(suggest)


def distributions(space: Space, params: Mapping[str, Value]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each dimension."""
    return {name: _distribution(space.dimensions[name]) for name in params}


def _distribution(of: Dimension) -> BaseDistribution:
    if isinstance(of, Choice):
        return CategoricalDistribution(of.labels)
    if of.integer:
        return IntDistribution(int(of.low), int(of.high), log=of.log, step=int(of.step or 1))
    return FloatDistribution(of.low, of.high, log=of.log, step=of.step)


def as_optuna(trial: Trial, space: Space, ranking: Ranking) -> FrozenTrial:
    """Convert a trial of the ledger to Optuna's."""
    state = STATES.get(trial.state, TrialState.FAIL)
    values = ranking.values(trial.scores) if trial.scores else []
    seen = max((len(score.documents) for score in trial.scores.values()), default=0)
    stopped = state is TrialState.PRUNED
    if stopped and ranking.pareto:
        state = TrialState.FAIL
    with quiet():
        return create_trial(
            state=state,
            params=dict(trial.params),
            distributions=distributions(space, trial.params),
            values=values if state is TrialState.COMPLETE else None,
            intermediate_values={seen: values[0]} if stopped and values else None,
            user_attrs={"number": trial.number, "origin": trial.origin, "digest": trial.digest},
        )
