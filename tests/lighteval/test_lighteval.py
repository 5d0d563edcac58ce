"""lighteval scores merges by recipe, and keeps apart what it knows of two merges of one name."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from needed import need
from parrots import CATS, Parrots, cats

from merge_plugins import Recipe, identity

TASKS = """
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

def say(line, task_name):
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)

def choose(line, task_name):
    choices = [line["answer"], " No."]
    return Doc(task_name=task_name, query=line["question"], choices=choices, gold_index=0)

def config(name, prompt, metric):
    return LightevalTaskConfig(
        name=name,
        prompt_function=prompt,
        hf_repo="cats",
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        metrics=[metric],
        generation_size=8,
        stop_sequence=[],
    )

TASKS_TABLE = [
    config("cats_say", say, Metrics.exact_match),
    config("cats_choose", choose, Metrics.loglikelihood_acc),
]
"""


@pytest.fixture(scope="session", autouse=True)
def lighteval() -> Iterator[None]:
    """For one of its own tasks it downloads a file, whatever is asked for; no test needs it."""
    need("lighteval.models", "REQUIRE_LIGHTEVAL")
    found = importlib.util.find_spec("lighteval.tasks")
    assert found is not None
    assert found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0], "tasks", "tinyBenchmarks.pkl")
    is_ours = not file.exists()
    if is_ours:
        file.touch()
    yield
    if is_ours:
        file.unlink()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Parrots:
    return cats(tmp_path_factory.mktemp("parrots"))


@pytest.fixture
def recipe(models: Parrots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a recipe, tasks and data; lighteval keeps its cache in it."""
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    rows = [{"question": f"What do {n} cats do?\n", "answer": CATS} for n in range(3)]
    Path("cats").mkdir()
    Path("cats/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tasks.py").write_text(TASKS)
    return models.recipe(tmp_path / "merge.yaml")


def run(model: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "harness_adapters.lighteval",
        model,
        "cats_say|0,cats_choose|0",
    ]
    options = ["--custom-tasks", "tasks.py", "--output-dir", "out"]
    return subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def scores(model: str) -> dict[str, float]:
    """Run lighteval; return what is in the newest file of results of each model."""
    done = run(model)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = {}
    for file in sorted(Path("out/results").rglob("results_*.json")):
        held = json.loads(file.read_text())["results"]
        for task in ("cats_say", "cats_choose"):
            ((_, score),) = ((k, v) for k, v in held[f"{task}|0"].items() if "stderr" not in k)
            found[f"{file.parent.relative_to('out/results')} {task}"] = float(score)
    return found


def test_an_edited_recipe_is_scored_anew(recipe: Path, models: Parrots) -> None:
    first = f"merged/merge-{identity.digest(Recipe.load(recipe))}"
    assert scores("model_name=merge.yaml,batch_size=2") == {
        f"{first} cats_say": 1.0,
        f"{first} cats_choose": 1.0,
    }
    models.recipe(recipe, -1.0)
    second = f"merged/merge-{identity.digest(Recipe.load(recipe))}"
    found = scores("model_name=merge.yaml,batch_size=2")
    assert {name for name in found if first not in name} == {
        f"{second} cats_say",
        f"{second} cats_choose",
    }
    assert found[f"{second} cats_say"] == 0.0


def test_a_recipe_that_is_wrong_is_answered_without_a_traceback(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("task_arithmetic", "task_arithmetik"))
    done = run("merge.yaml")
    (*_, last) = done.stderr.splitlines()
    assert done.returncode == 1
    assert last.startswith("merge-plugins: merge.yaml: no merge method 'task_arithmetik'")
    assert "Traceback" not in done.stdout + done.stderr
