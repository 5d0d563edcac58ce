"""Whose scores these are: names of results, cached answers, experts, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from classifiers import HEADS
from glue_alone import FEWER

from harness_adapters.commands import report
from harness_adapters.lm_eval.classifiers.model import MergedClassifiers
from merge_plugins import Recipe, digest

Write = Callable[..., str]
Command = Callable[..., Path]
SCALED = {"parameters": {"scaling_coefficient": 0.9}}


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_results_are_filed_under_the_merge(command: Command, recipe_file: Write) -> None:
    recipe = Recipe.load(recipe_file())
    file = command(recipe_file())
    found, name = read(file), f"task_arithmetic-{digest(recipe)}"
    assert file.parent.name == name == found["model_name"]
    assert found["config"]["model_sha"] == digest(recipe)
    assert Recipe.from_mapping(found["config"]["merge"]["recipe"]) == recipe
    assert MergedClassifiers(**found["config"]["model_args"]).label == name, "runs as recorded"
    assert command(recipe_file(**SCALED)).parent != file.parent


def test_experts_are_scored_by_the_same_command_and_normalise_its_scores(
    command: Command, recipe_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, experts = command(recipe_file()), command(f"{recipe_file()},experts=true")
    name = experts.parent.name
    assert name.startswith("experts-")
    other = recipe_file(merge_method="average_merging", parameters={})
    assert MergedClassifiers(config=other, experts="true").label == name
    capsys.readouterr()
    words = ["--normalise", "--no-stderr", "--format", "csv"]
    assert report.main([str(tmp_path / "output"), *words]) == 0
    head, first, second = capsys.readouterr().out.strip().splitlines()
    assert head == "model,rte,mnli,stsb,average"
    assert first == f"{name},100.0,100.0,100.0,100.0"
    assert second.startswith("task_arithmetic,")
    metrics = {"rte": ["acc"], "mnli": ["acc"], "stsb": ["pearson", "spearman"]}
    for cell, (task, names) in zip(second.split(",")[1:], metrics.items(), strict=False):
        own, alone = (
            sum(read(file)["results"][task][f"{metric},none"] for metric in names)
            for file in (merged, experts)
        )
        assert float(cell) == pytest.approx(100 * own / alone)


def test_an_expert_answers_as_it_would_alone(one_family: Mapping[str, str], score: Any) -> None:
    whole = {
        "method": "task_arithmetic",
        "base": one_family["base"],
        "models": "+".join(one_family[task] for task in HEADS),
        "task": "+".join(HEADS),
    }
    found = score({**whole, "experts": True})["results"]
    for task in HEADS:
        given = {"method": "average_merging", "models": one_family[task], "task": task}
        assert score(given, tasks=[task])["results"][task] == found[task]


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the rows that models read, by task."""
    counts: dict[str, int] = {}
    run = MergedClassifiers._run

    def counting(self: Any, task: str, rows: Any) -> Any:
        counts[task] = counts.get(task, 0) + len(rows)
        return run(self, task, rows)

    monkeypatch.setattr(MergedClassifiers, "_run", counting)
    return counts


def test_cached_answers_are_those_of_this_merge_and_this_task(
    one_family: Mapping[str, str],
    recipe_file: Write,
    command: Command,
    tmp_path: Path,
    n_read: dict[str, int],
) -> None:
    """The rows, prompts and choices of wnli are those of rte here."""
    models = [
        {"model": one_family["rte"], "task": "rte"},
        {"model": one_family["cola"], "task": "wnli"},
    ]

    def results(*words: str, **changes: Any) -> dict[str, Any]:
        n_read.clear()
        recipe = recipe_file(models=models, **changes)
        file = command(recipe, *words, "--log_samples", tasks="rte,wnli")
        stamp = file.stem.removeprefix("results_")
        logged = {name: file.parent / f"samples_{name}_{stamp}.jsonl" for name in ("rte", "wnli")}
        return {name: read_lines(path) for name, path in logged.items()}

    cache = ["--use_cache", str(tmp_path / "cache")]
    plain, first = results(), results(*cache)
    assert first == plain
    assert plain["rte"] != plain["wnli"]
    assert n_read == {"rte": 14, "wnli": 14}
    assert results(*cache) == plain
    assert n_read == {"rte": 0, "wnli": 0}
    assert results(*cache, **SCALED) == results(**SCALED) != plain


def read_lines(file: Path) -> list[Any]:
    return [json.loads(line)["filtered_resps"] for line in file.read_text().splitlines()]


def test_the_command_runs_as_a_program(data: Path, recipe_file: Write, tmp_path: Path) -> None:
    script = tmp_path / "lm_eval_with_fewer_tasks.py"
    script.write_text(f"{FEWER}\nfrom lm_eval.__main__ import cli_evaluate\ncli_evaluate()\n")
    model = ["--model", "merged-classifiers", "--model_args", f"config={recipe_file()}"]
    where = ["--tasks", "rte,mnli_mismatch,stsb", "--output_path", str(tmp_path / "output")]
    done = subprocess.run(
        [sys.executable, str(script), *model, *where, "--batch_size", "auto", "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=data,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("|rte", "|mnli_mismatch", "|stsb", "pearson", "spearman"):
        assert name in done.stdout
    assert len([*(tmp_path / "output").rglob("results_*.json")]) == 1
