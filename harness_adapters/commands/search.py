"""Find the best merge of a space: `merge-plugins search search.yaml DIR`.

search.yaml is a recipe in which values vary ({low, high} or {choices}), plus search: and model:.
To go on with a search that ended or was killed, run the same command again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr
from pathlib import Path

from harness_adapters.commands import search_demo as demo
from merge_plugins.cli.arguments import add_plugin
from merge_plugins.errors import MergeError
from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import read_recipe
from merge_plugins.search import loop, processes, proposal, report, winners
from merge_plugins.search.named import objective as named
from merge_plugins.search.objective import Benchmarks, Objective
from merge_plugins.search.settings import SearchFile
from merge_plugins.search.study import Study
from merge_plugins.search.table import Table, params, plus_minus
from merge_plugins.signals import interrupts_once


def main(argv: Sequence[str] | None = None) -> int:
    """Find the best merge of a space of recipes, scored in one process, without a checkpoint."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(words)
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
    return _search(options, words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="merge-plugins search", description=__doc__)
    add = parser.add_argument
    add("file", nargs="?", metavar="search.yaml", help="the recipe, what varies in it, the search")
    add("folder", nargs="?", type=Path, metavar="DIR", help="for the ledger and the report")
    add("--workers", default="1", metavar="N", help="processes, or auto: one per GPU")
    add("--objective", default="lm-eval", metavar="WHAT",
        help="lm-eval (the default), mteb, loss=DATA, entropy=DATA, file.py:function, or a command "
        "with {folder}; the last two run that code")  # fmt: skip
    add("--storage", metavar="URL", help="postgresql://…, for hosts that share no folder")
    add("--on-test", action="store_true", help="tune on a benchmark's test split all the same")
    add("--trust-remote-code", action="store_true", help="run code that came with a model or task")
    add_plugin(parser)
    add("--show", type=Path, metavar="DIR", help="write the report of a search again")
    add("--init", metavar="RECIPE", help="write a search.yaml with ranges for the recipe's method")
    add("--tasks", default="gsm8k", help="tasks that --init writes, joined by commas")
    add("--demo", action="store_true", help="search through merges of tiny models: a minute")
    add("--as-worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def _search(options: argparse.Namespace, words: Sequence[str]) -> int:
    file, n_workers = SearchFile.load(options.file), processes.number_of(options.workers)
    with closing(_objective(options, file)) as objective, interrupts_once() as stop:
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
            processes.search(study, words, n_workers, stop) if many else loop.run(study, stop)
        ):
            print(table.row(trial), flush=True)
        if not stop():
            whole = objective.separately if isinstance(objective, Benchmarks) else objective.score
            with _log(options.folder):
                for winner in winners.rerun(study, whole):
                    print(f"scored again, as a whole: {winner.trial.number}", flush=True)
        _finish(study)
        return 130 if stop() else 0


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
        print(f"\n{place}. candidate {winner.trial.number}: {params(winner.trial.params)}")
        for goal, score in winner.tune.items():
            held_out = winner.held_out and winner.held_out.get(goal)
            rest = f", held out {plus_minus(held_out)}" if held_out else ""
            print(f"   {goal}: tuned on {plus_minus(score)}{rest}")
    print("\nwritten:", *report.write(study), sep="\n  ")
