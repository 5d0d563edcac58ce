"""evalplus generates with a merge and scores it, on problems of our own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from needed import need
from parrots import Parrots, jsonl, parrots

from merge_plugins import MergeError, Recipe, identity

BEGUN, DONE = "    return x", " + x"


@pytest.fixture(scope="session", autouse=True)
def evalplus() -> None:
    need("evalplus.codegen", "REQUIRE_EVALPLUS")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Parrots:
    """Only the merge of both experts returns x + x, whatever the problem."""
    known = {"left": [("\n", BEGUN)], "right": [(BEGUN, DONE)]}
    return parrots(tmp_path_factory.mktemp("parrots"), known)


def problem(number: int, name: str, body: str) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(x):\n    """Return {name} of x."""\n',
        "entry_point": name,
        "canonical_solution": f"    return {body}\n",
        "contract": "",
        "base_input": [[0], [2]],
        "plus_input": [[5]],
        "atol": 0,
    }


PROBLEMS = (problem(0, "double", "2 * x"), problem(1, "square", "x * x"))
"""To x + x the first is right; the second holds on the inputs of HumanEval, and not on those of
HumanEval+."""


@pytest.fixture
def recipe(models: Parrots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a recipe, in which evalplus keeps what it computes of the problems."""
    monkeypatch.chdir(tmp_path)
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(tmp_path / "problems.jsonl"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return models.recipe(tmp_path / "merge.yaml")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness_adapters.evalplus", "merge.yaml"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *words], capture_output=True, text=True, env=env)


def passed(results: str) -> list[tuple[bool, bool]]:
    """For each problem, whether the program passes HumanEval's tests, and HumanEval+'s."""
    found = json.loads(Path(results).read_text())["eval"]
    programs = [found[row["task_id"]][0] for row in PROBLEMS]
    return [(p["base_status"] == "pass", p["plus_status"] == "pass") for p in programs]


def test_programs_are_generated_and_scored(recipe: Path, models: Parrots) -> None:
    options = ("--dataset", "humaneval", "--score", "--allow-code-execution")
    done = run("--out", "samples.jsonl", *options)
    assert done.returncode == 0, done.stderr[-4000:]
    label = identity.label(Recipe.load(recipe))
    assert f"samples.jsonl: 2 programs of {label}" in done.stdout
    names = [row["task_id"] for row in jsonl(Path("samples.jsonl"))]
    assert names == ["HumanEval/0", "HumanEval/1"]
    for row, asked in zip(jsonl(Path("samples.raw.jsonl")), PROBLEMS, strict=True):
        assert row["solution"] == asked["prompt"] + BEGUN + DONE
    assert passed("samples_eval_results.json") == [(True, True), (True, False)]
    models.recipe(recipe, -1.0)
    done = run("--out", "wrecked.jsonl", *options)
    assert done.returncode == 0, done.stderr[-4000:]
    assert passed("wrecked_eval_results.json") == [(False, False)] * 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--out samples.json", "ends with .jsonl"),
        ("--out samples.jsonl --score", "--allow-code-execution"),
        ("--out samples.jsonl --score --allow-code-execution --limit 1", "scores no part"),
        ("--out taken.jsonl", "taken_eval_results.json exists"),
    ],
)
def test_what_evalplus_cannot_do_is_refused_first(recipe: Path, options: str, why: str) -> None:
    from harness_adapters import evalplus as adapter

    Path("taken_eval_results.json").touch()
    before = {*Path().iterdir()}
    with pytest.raises(MergeError, match=re.escape(why)):
        adapter.main(["merge.yaml", "--dataset", "humaneval", *options.split()])
    assert {*Path().iterdir()} == before


def test_a_part_of_the_problems(recipe: Path) -> None:
    done = run("--dataset", "humaneval", "--out", "samples.jsonl", "--limit", "1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert [row["task_id"] for row in jsonl(Path("samples.jsonl"))] == ["HumanEval/0"]
