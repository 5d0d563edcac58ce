"""Search for a merge of experts that disagree: `merge-plugins search --demo`.

Three of the demo's experts have a skill each; the fourth learned wrong answers to everything. The
search tunes on questions of its own, and is compared with methods as they come on others.
"""

from __future__ import annotations

import functools
import tempfile
import time
from contextlib import closing, redirect_stderr
from pathlib import Path
from typing import Any

from harness_adapters.commands.demo import COLUMNS, MERGES, print_row, scores
from merge_plugins.demo import WRONG, family
from merge_plugins.demo.skills import SKILLS
from merge_plugins.search import loop
from merge_plugins.search.named import objective
from merge_plugins.search.settings import SearchFile
from merge_plugins.search.study import Study
from merge_plugins.search.table import Table, params

N = 40
"""Candidates."""


def models() -> list[str]:
    """List the four experts."""
    return [*(str(path) for name, path in family().items() if name != "base"), str(WRONG)]


def content() -> dict[str, Any]:
    """Return the search.yaml of the demo: how much of each expert, and how much of all."""
    weight = {"weight": {"low": 0, "high": 1}}
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(family()["base"]),
        "models": [{"model": model, "parameters": weight} for model in models()],
        "search": {
            "tasks": [f"merge_demo_tune_{skill}" for skill in SKILLS],
            "budget": {"trials": N},
            "sampler": "tpe",
        },
        "model": {"dtype": "float32", "device": "cpu", "batch_size": 128},
    }


def run() -> int:
    """Search, then compare with the methods of `merge-plugins demo` on the held-out questions."""
    started = time.monotonic()
    print(f"{N} candidates, each scored on three tasks; lm-eval is loaded first.\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="merge-plugins-demo-") as folder:
        best = _search(Path(folder))
    width = max(map(len, (*MERGES, "search")))
    row = functools.partial(print_row, width, 23)
    print("\nThe same four experts, on 100 other questions of each skill:\n")
    row("model", "parameters", COLUMNS)
    row("-----", "----------", ["---:"] * len(COLUMNS))
    for method, parameters in MERGES.items():
        row(method, parameters, _scores(method, parameters))
    row("search", f"best of {N}", scores("merged", best, None))
    print(f"\n{time.monotonic() - started:.0f} s, and no merge was written to disk.")
    return 0


def _search(folder: Path) -> dict[str, str]:
    """Search and print the table; return the best recipe as lm-eval's model arguments."""
    file = SearchFile.parse(content(), folder)
    with (
        (folder / "log.txt").open("w", encoding="utf-8") as log,
        closing(objective("lm-eval", file.settings.tasks, file.model)) as evaluator,
    ):
        study = Study.open(file, folder, evaluator)
        table = Table(study)
        print(table.head(), flush=True)
        with redirect_stderr(log):
            for trial in loop.run(study):
                print(table.row(trial), flush=True)
        best = study.best()[0]
    print(f"\nbest: candidate {best.number}, {params(best.params)}")
    weights = "+".join(str(weight) for weight in best.params.values())
    return {**_merge("task_arithmetic"), "weights": weights}


def _scores(method: str, parameters: str) -> list[str]:
    given = dict(part.split("=") for part in parameters.split(",") if part)
    return scores("merged", {**_merge(method), **given}, None)


def _merge(method: str) -> dict[str, str]:
    return {"method": method, "base": str(family()["base"]), "models": "+".join(models())}
