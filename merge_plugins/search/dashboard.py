"""Write a search as a study of Optuna, for optuna-dashboard and Optuna's own plots."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend

from merge_plugins.search.by_optuna import as_optuna, directions, quiet
from merge_plugins.search.history import History
from merge_plugins.search.study import Study


def rebuilt(study: Study, storage: optuna.storages.BaseStorage | None = None) -> optuna.Study:
    """Rebuild Optuna's study from the ledger, in memory or in a storage."""
    with quiet():
        made = optuna.create_study(
            study_name=study.ledger.folder.name or "search",
            directions=directions(study.ranking),
            storage=storage,
        )
        if study.settings.pareto:
            made.set_metric_names([*study.ranking.goals])
        points = History(study.ledger.trials).points
        made.add_trials([as_optuna(trial, study.space, study.ranking) for trial in points])
    return made


def write(study: Study, file: Path) -> None:
    """Write a study as Optuna's journal, whole or not at all."""
    unfinished = file.with_name(f".{file.name}.new")
    unfinished.unlink(missing_ok=True)
    with quiet():
        backend = JournalFileBackend(str(unfinished))
        rebuilt(study, optuna.storages.JournalStorage(backend))
    unfinished.replace(file)
