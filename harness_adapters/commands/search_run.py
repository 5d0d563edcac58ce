"""The work of `merge-plugins search`: propose, score, and note candidates until the budget ends."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr
from pathlib import Path

from harness_adapters.commands import search_demo as demo
from merge_plugins.errors import MergeError
from merge_plugins.notice import hushed
from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import read_recipe
from merge_plugins.search import loop, processes, proposal, report, winners
from merge_plugins.search.named import objective as named
from merge_plugins.search.objective import Benchmarks, Objective
from merge_plugins.search.settings import SearchFile
from merge_plugins.search.study import Study
from merge_plugins.search.table import Table, plus_minus, what
from merge_plugins.signals import interrupts_once


def run(options: argparse.Namespace) -> int:
    """Do what the options ask for; return the exit status."""
    load_plugins(options.plugin)
    if options.show:
        _finish(Study.recorded(options.show))
        return 0
    if options.demo:
        return demo.run()
    if options.init:
        file = Path(options.file or "search.yaml")
        proposal.write(read_recipe(options.init), options.tasks.split(","), file)
        print(f"{file}: look at the ranges, then run merge-plugins search {file} DIR")
        return 0
    if not options.file or not options.folder:
        raise MergeError("search takes a search.yaml and a folder; see merge-plugins search --help")
    return _search(options)


def _search(options: argparse.Namespace) -> int:
    file, n_workers = SearchFile.load(options.file), processes.number_of(options.workers)
    with closing(_objective(options, file)) as objective, interrupts_once() as stop, hushed():
        notes = _notes(objective, options.on_test)
        trust = options.trust_remote_code or None
        study = Study.open(file, options.folder, objective, trust, notes, options.storage)
        if options.as_worker:
            for _ in loop.run(study, stop):
                pass
            return 130 if stop() else 0
        table = Table(study, n_workers)
        print(*notes, table.head(), sep="\n", flush=True)
        many = n_workers > 1
        for trial in (
            processes.search(study, _words(options), n_workers, stop)
            if many
            else loop.run(study, stop)
        ):
            print(table.row(trial), flush=True)
        if not stop():
            whole = objective.separately if isinstance(objective, Benchmarks) else objective.score
            with _log(options.folder):
                for winner in winners.rerun(study, whole):
                    print(f"scored again, as a whole: {winner.trial.number}", flush=True)
        _finish(study)
        return 130 if stop() else 0


def _words(options: argparse.Namespace) -> list[str]:
    """Write the words that start one worker of this search."""
    words = [options.file, str(options.folder), "--objective", options.objective]
    words += ["--storage", options.storage] if options.storage else []
    words += [word for file in options.plugin for word in ("--plugin", file)]
    words += ["--on-test"] if options.on_test else []
    return words + (["--trust-remote-code"] if options.trust_remote_code else [])


@contextmanager
def _log(folder: Path) -> Iterator[None]:
    """Write progress bars and warnings to a file: each row of the table is progress."""
    with (folder / "log.txt").open("a", encoding="utf-8") as file, redirect_stderr(file):
        yield


def _objective(options: argparse.Namespace, file: SearchFile) -> Objective:
    tasks = file.settings.tasks
    if options.objective == "lm-eval" and not tasks:
        raise MergeError("search: no tasks; write tasks: [gsm8k], or {gsm8k: {metric: …}}")
    return named(options.objective, tasks, file.model, trust_remote_code=options.trust_remote_code)


def _notes(objective: Objective, on_test: bool) -> list[str]:
    """Refuse to tune on a test split, unless it is meant; return what the report must say."""
    tested = ", ".join(objective.test_tasks) if isinstance(objective, Benchmarks) else ""
    if not tested:
        return []
    if not on_test:
        raise MergeError(
            f"{tested}: the test split would be scored, and what was tuned on it says nothing of "
            "other models' scores on it. Tune on tasks with a validation split, or on questions of "
            "your own; --on-test tunes on it all the same, and the report says so"
        )
    return [f"Tuned on the test split of {tested}: not comparable with results of others on it."]


def _finish(study: Study) -> None:
    """Print what won, and write the report."""
    for place, winner in enumerate(winners.winners(study), start=1):
        print(f"\n{place}. candidate {winner.trial.number}: {what(winner.trial)}")
        for goal, score in winner.tune.items():
            held_out = winner.held_out and winner.held_out.get(goal)
            rest = f", held out {plus_minus(held_out)}" if held_out else ""
            print(f"   {goal}: tuned on {plus_minus(score)}{rest}")
    print("\nwritten:", *report.write(study), sep="\n  ")
