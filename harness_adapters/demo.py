"""`merge-plugins demo`: tiny models that share a base and know different things, merged and scored.

Runs lm-eval's own `hf` on the base and on each expert, and `merged` on their merges.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_adapters._discovery import task_folders
from merge_plugins.demo import family
from merge_plugins.demo.skills import SKILLS
from merge_plugins.errors import MergeError

MERGES: Mapping[str, str] = {
    "average_merging": "",
    "model_stock": "",
    "task_arithmetic": "lambda=0.5",
    "ties": "weights=1,density=0.5",
    "dare_ties": "weights=0.5,density=0.8",
}
"""The merges shown: each method with its parameters as model_args spells them."""
COLUMNS = (*SKILLS, "mean")


def main(argv: Sequence[str] | None = None) -> int:
    """Score base, experts and merges, and print one table."""
    parser = argparse.ArgumentParser(prog="merge-plugins demo", description=__doc__)
    parser.add_argument("--limit", type=int, help="score only this many examples of each skill")
    parser.add_argument("--copy", metavar="DIR", type=Path, help="only copy the models there")
    options = parser.parse_args(argv)
    models = family()
    if options.copy:
        for name, path in models.items():
            shutil.copytree(path, options.copy / name, dirs_exist_ok=True)
            print(options.copy / name)
        return 0
    started = time.monotonic()
    print(f"Base and experts: {next(iter(models.values())).parent}\n")
    _row("model", "parameters", COLUMNS)
    _row("-----", "----------", ["---:"] * len(COLUMNS))
    for name, path in models.items():
        _row(name, "", _scores("hf", {"pretrained": str(path)}, options.limit))
    for method in MERGES:
        _row(method, MERGES[method], _scores("merged", _arguments(method), options.limit))
    print(f"\n{time.monotonic() - started:.0f} s, and no merge was written to disk.")
    return 0


def _arguments(method: str) -> dict[str, str]:
    """Model arguments of one merge of all experts, as lm-eval parses them."""
    models = family()
    experts = "+".join(str(path) for name, path in models.items() if name != "base")
    given = f"method={method},base={models['base']},models={experts}"
    parameters = f",{MERGES[method]}" if MERGES[method] else ""
    return dict(part.split("=", 1) for part in (given + parameters).split(","))


def _scores(model: str, arguments: dict[str, str], limit: int | None) -> list[str]:
    """Percent exact match on each skill, and their mean."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as exc:
        raise MergeError('the demo needs lm-eval: pip install "merge-plugins[lm-eval]"') from exc
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tasks = [f"merge_demo_{skill}" for skill in SKILLS]
    ours = TaskManager(include_path=list(task_folders()), include_defaults=False)  # the rest: slow
    bars = io.StringIO()  # progress bars: one row a model is progress enough
    with contextlib.redirect_stderr(bars), contextlib.redirect_stdout(bars):
        found: dict[str, Any] = simple_evaluate(
            model=model,
            model_args=dict(arguments),
            tasks=tasks,
            task_manager=ours,
            limit=limit,
            device="cpu",
            batch_size=64,
            log_samples=False,
            bootstrap_iters=0,
        )
    scores = [100 * found["results"][task]["exact_match,none"] for task in tasks]
    return [f"{score:.1f}" for score in (*scores, sum(scores) / len(scores))]


def _row(name: str, parameters: str, cells: Sequence[str]) -> None:
    print(f"|{name:15}|{parameters:24}|" + "".join(f"{cell:>6}|" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
