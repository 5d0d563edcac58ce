"""Merge and score tiny models with different skills and one base: `merge-plugins demo`.

Runs lm-eval's own `hf` on the base and on each expert, and `merged` on their merges.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness_adapters.lm_eval.discovery import task_folders
from merge_plugins.cli import takes
from merge_plugins.demo import WRONG, family
from merge_plugins.demo.skills import SKILLS, training
from merge_plugins.errors import MergeError
from merge_plugins.folders import complete_or_nothing, new_folder
from merge_plugins.installing import to_install

MERGES: Mapping[str, str] = {
    "average_merging": "",
    "stock_merging": "",
    "task_arithmetic": "lambda=0.5",
    "ties": "weights=1,density=0.5",
    "dare_ties": "weights=0.5,density=0.8",
}
"""Merges in the table: each method with its parameters in lm-eval's model_args form.

Their weights have the same bits on every processor, and no answer hangs on a difference of logits
below 1e-4, a hundred times what processors differ by. `model_stock` rounds its sums to bfloat16.
"""
MORE: Mapping[str, str] = {
    "linear": "weights=0.4+0.3+0.3",
    "dare_linear": "weights=0.5,density=0.5",
    "breadcrumbs": "weights=0.5,density=0.9,gamma=0.05",
    "della": "weights=0.5,density=0.6,epsilon=0.2",
    "model_stock": "",
    "ties_merging": "param_value_mask_rate=0.5",
    "breadcrumbs_merging": "scaling_coefficient=0.5",
    "mask_merging": "weight_mask_rate=0.5,use_weight_rescale=true",
    "widen_merging": "",
    "fisher_merging": "",
    "regmean_merging": "",
    "cocktail": "temperature=1",
    "twin_merging": "router=mlp",
    "tsv": "",
    "iso_c": "lambda=1.5",
    "iso_cts": "lambda=1.5",
    "consensus": "lambda=0.7,mask_lambda=0.2",
    "pcb": "lambda=1.5,density=0.4",
    "wudi": "",
    "emr": "tasks=*math+*code+*sea",
    "adamerging": "steps=10,lr=0.05",
}
"""Further merges with ``--all``."""
LEARNING = ("adamerging", "fisher_merging", "regmean_merging", "cocktail", "twin_merging")
"""Methods that need training examples: of each expert's own skill, or (cocktail) of all skills."""
COLUMNS = (*SKILLS, "mean")
TASKS = tuple(f"merge_demo_{skill}" for skill in SKILLS)
"""lm-eval's names of the demo's tasks, a skill each."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--limit", type=int, help="score only this many examples of each skill")
    parser.add_argument("--all", action="store_true", help="also score less common methods")
    parser.add_argument("--copy", metavar="DIR", type=Path, help="only copy the models there")


@takes(_arguments, group="first steps")
def main(options: argparse.Namespace) -> int:
    """Merge and score tiny models with different skills, in one table."""
    if options.copy:
        return copy(options.copy)
    started = time.monotonic()
    merges = {**MERGES, **(MORE if options.all else {})}
    with tempfile.TemporaryDirectory(prefix="merge-plugins-demo-") as texts:
        rows: list[tuple[str, str, str, dict[str, str]]] = [
            *((name, "", "hf", {"pretrained": str(path)}) for name, path in family().items()),
            *(
                (m, given, "merged", _model_args(m, given, Path(texts)))
                for m, given in merges.items()
            ),
        ]
        print(f"Base and experts: {family()['base'].parent}")
        print(f"{len(rows)} models to score; lm-eval is loaded first.\n", flush=True)
        row = functools.partial(print_row, max(map(len, merges)), max(map(len, merges.values())))
        row("model", "parameters", COLUMNS)
        row("-----", "----------", ["---:"] * len(COLUMNS))
        progress = tqdm(rows, unit="model", leave=False, disable=None)
        for name, parameters, kind, arguments in progress:
            progress.set_description(name)
            found = scores(kind, arguments, options.limit)
            progress.clear()
            row(name, parameters, found)
    print(f"\n{time.monotonic() - started:.0f} s, and no merge was written to disk.")
    return 0


def copy(target: Path) -> int:
    """Copy the models to a new folder, whole or not at all."""
    target = new_folder(target)
    with complete_or_nothing(target) as folder:
        for name, path in {**family(), WRONG.name: WRONG}.items():
            shutil.copytree(path, folder / name)
    print(*sorted(target.iterdir()), sep="\n")
    return 0


def _model_args(method: str, parameters: str, texts: Path) -> dict[str, str]:
    """Build lm-eval's model arguments of one merge of all experts."""
    models = family()
    experts = "+".join(str(path) for name, path in models.items() if name != "base")
    given = f"method={method},base={models['base']},models={experts}"
    if method in LEARNING:
        given += f",data={_examples(texts, each=method != 'cocktail')}"
    return dict(part.split("=", 1) for part in f"{given},{parameters}".strip(",").split(","))


def _examples(folder: Path, *, each: bool) -> str:
    """Write training examples and return ``data=``: a file per expert, or one of all skills."""
    for skill in SKILLS:
        some = itertools.islice(training(skill, seed=1), 128)
        rows = [json.dumps({"prompt": row.prompt, "response": row.answer}) for row in some]
        (folder / f"{skill}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    if each:
        return "+".join(str(folder / f"{skill}.jsonl") for skill in SKILLS)
    files = [folder / f"{skill}.jsonl" for skill in SKILLS]
    mixed = [file.read_text(encoding="utf-8").splitlines()[:5] for file in files]
    (folder / "all.jsonl").write_text("\n".join(itertools.chain(*mixed)), encoding="utf-8")
    return str(folder / "all.jsonl")


@functools.cache
def _tasks() -> Any:
    """Build lm-eval's task objects, once for all rows of the table."""
    try:
        from lm_eval import tasks
    except ImportError as exc:
        raise MergeError(f"the demo needs lm-eval: {to_install('lm-eval')}") from exc
    folders = list(task_folders())
    ours = tasks.TaskManager(include_path=folders, include_defaults=False)  # the rest: slow
    if hasattr(ours, "load"):
        return ours.load([*TASKS])
    return tasks.get_task_dict([*TASKS], ours)  # releases before 0.4.10


def scores(model: str, arguments: dict[str, str], limit: int | None) -> list[str]:
    """Score a model on each skill: percent of exact matches, then their mean."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    bars = io.StringIO()  # hides progress bars: each row of the table is progress
    with contextlib.redirect_stderr(bars), contextlib.redirect_stdout(bars):
        tasks = _tasks()
        from lm_eval.api.registry import get_model
        from lm_eval.evaluator import evaluate

        # in float32, because most CPUs are much slower in the models' bfloat16
        options = {"batch_size": 64, "device": "cpu", "dtype": "float32"}
        lm = get_model(model).create_from_arg_obj(dict(arguments), options)
        # simple_evaluate would also describe this machine anew for each row: seconds
        results: Any = evaluate(lm, tasks, limit=limit, log_samples=False, bootstrap_iters=0)
    scores = [100 * results["results"][task]["exact_match,none"] for task in TASKS]
    return [f"{score:.1f}" for score in (*scores, sum(scores) / len(scores))]


def print_row(wide: int, wider: int, name: str, parameters: str, cells: Sequence[str]) -> None:
    """Print a row of the table."""
    start = f"|{name:{wide}}|{parameters:{wider}}|"
    print(start + "".join(f"{cell:>6}|" for cell in cells), flush=True)
