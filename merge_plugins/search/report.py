"""Write what a search found: report.md, best.yaml, pictures, and a study for optuna-dashboard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from merge_plugins.folders import write_whole
from merge_plugins.installing import to_install
from merge_plugins.recipe import Recipe
from merge_plugins.search.ranking import on
from merge_plugins.search.study import Study
from merge_plugins.search.table import plus_minus, what
from merge_plugins.search.winners import winners

REPORT, BEST, DASHBOARD = "report.md", "best.yaml", "optuna.log"


def write(study: Study) -> list[Path]:
    """Write the report of what is in the ledger; return the files."""
    folder = study.ledger.folder
    pictures, missing = _pictures(study)
    files = [folder / name for name in pictures]
    best = best_recipe(study)
    if best is not None:
        write_whole(folder / BEST, best.to_yaml())
        files.append(folder / BEST)
    said = [*study.ledger.header["notes"], *missing]
    write_whole(folder / REPORT, "\n".join(_lines(study, pictures, said)) + "\n")
    return [folder / REPORT, *files]


def best_recipe(study: Study) -> Recipe | None:
    """Return the recipe that won on the tuning documents, when all were scored if that was done."""
    first = [winner.trial for winner in winners(study)] or study.best()
    return Recipe.from_mapping(first[0].recipe) if first else None


def _pictures(study: Study) -> tuple[list[str], list[str]]:
    """Draw what can be drawn; return the files' names, and what is missing for the rest."""
    try:
        import matplotlib  # noqa: F401
        import optuna  # noqa: F401
    except ImportError as exc:
        return [], [f"No pictures: {exc.name} is missing; {to_install('search')}."]
    from merge_plugins.search import dashboard, pictures

    dashboard.write(study, study.ledger.folder / DASHBOARD)
    return pictures.draw(study), []


def _lines(study: Study, pictures: Sequence[str], notes: Sequence[str]) -> Iterator[str]:
    folder, states = study.ledger.folder, [t.state for t in study.ledger.trials]
    counts = {s: states.count(s) for s in ("complete", "stopped", "failed", "repeat")}
    yield f"# Search in {folder.name}"
    yield ""
    shown = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    yield f"{len(study.scored)} candidates by {study.settings.sampler}: {shown}."
    yield f"{study.spent():.0f} seconds. Scores: {study.ledger.header['scores']}."
    for note in notes:
        yield f"\n**{note}**"
    yield from _winners(study)
    yield from _table(study, "Where it started", _starts(study))
    yield from _table(study, "Best candidates, as tuned", [t for t, _ in _best(study)])
    failed = [t for t in study.scored if t.state == "failed"]
    if failed:
        yield "\n## Failed\n"
        yield from (f"* {t.number}: {t.error}" for t in failed[:10])
    for name in pictures:
        yield f"\n![{Path(name).stem}]({name})"
    yield "\n## Next\n\n```bash"
    yield f"lm_eval --model merged --model_args config={folder / BEST} --tasks …"
    yield f"merge-plugins mount {folder / BEST} MOUNTED"
    yield f"merge-plugins save {folder / BEST} CHECKPOINT"
    if pictures:
        yield f"optuna-dashboard {folder / DASHBOARD}"
    yield "```"


def _winners(study: Study) -> Iterator[str]:
    found = winners(study)
    yield "\n## Winners, scored again as a whole\n"
    if not found:
        yield "None yet: the search is not over, or was told `rerun: 0`."
        return
    if study.split.is_whole:
        yield "No documents were held out (`split:`), so these are the scores that were tuned.\n"
    else:
        yield (
            "Ordered by the documents that were tuned on, of which the scores are too high; the "
            "held-out documents chose nothing. ± is a standard error, in brackets the documents.\n"
        )
    goals = [*study.ranking.goals]
    kinds = ["tuned on"] if study.split.is_whole else ["tuned on", "held out"]
    yield "| candidate | " + " | ".join(f"{g}, {k}" for g in goals for k in kinds) + " | what |"
    yield "|---:|" + "---:|" * (len(goals) * len(kinds)) + "---|"
    for winner in found:
        cells = []
        for goal in goals:
            cells.append(plus_minus(winner.tune[goal]))
            if winner.held_out is not None:
                cells.append(plus_minus(winner.held_out.get(goal)))
        yield f"| {winner.trial.number} | {' | '.join(cells)} | {what(winner.trial)} |"


def _starts(study: Study) -> list[Any]:
    from_samplers = study.settings.sampler
    return [t for t in study.scored if t.origin != from_samplers and t.state == "complete"]


def _best(study: Study) -> list[tuple[Any, Any]]:
    by_number = {t.number: (t, s) for t, s in study.complete}
    return [by_number[trial.number] for trial in study.best()[:10]]


def _table(study: Study, title: str, trials: Sequence[Any]) -> Iterator[str]:
    goals = [*study.ranking.goals]
    yield f"\n## {title}\n"
    yield "| candidate | " + " | ".join(goals) + " | what |"
    yield "|---:|" + "---:|" * len(goals) + "---|"
    tuned = study.tuned
    for trial in trials:
        scores = on(trial.scores, tuned)
        cells = " | ".join(plus_minus(scores[goal]) for goal in goals)
        yield f"| {trial.number} | {cells} | {what(trial)} |"
