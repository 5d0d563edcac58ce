"""Tiny classifiers, the data sets of GLUE in a folder, and lm-eval's own GLUE on both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from classifiers import HEADS, write_classifiers, write_glue
from glue_alone import FEWER, GLUE
from lm_eval import evaluator
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager

from harness_adapters.lm_eval.discovery import task_folders


@pytest.fixture(scope="session", params=["roberta", "bert"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_classifiers(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def one_family(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return write_classifiers(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _beside_the_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` finds a folder of the data set's name before it asks the hub."""
    monkeypatch.chdir(data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def manager() -> TaskManager:
    return TaskManager(include_path=[str(GLUE), *task_folders()], include_defaults=False)


@pytest.fixture(scope="session")
def score(manager: TaskManager) -> Callable[..., dict[str, Any]]:
    """Run `lm_eval.simple_evaluate` on lm-eval's own tasks."""
    evaluator.add_env_info = lambda results: None  # asks pip and git for a second each time

    def run(model_args: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        defaults = {"device": "cpu", "bootstrap_iters": 0, "tasks": ["cola", "rte", "mnli", "stsb"]}
        found: dict[str, Any] = evaluator.simple_evaluate(
            "merged-classifiers",
            dict(model_args),
            task_manager=manager,
            **{**defaults, **options},
        )
        return found

    return run


@pytest.fixture
def recipe_file(one_family: Mapping[str, str], tmp_path: Path) -> Callable[..., str]:
    """Write a recipe of the four experts."""

    def write(**changes: Any) -> str:
        models = [{"model": one_family[task], "task": task} for task in HEADS]
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": one_family["base"],
            "models": models,
            "parameters": {"scaling_coefficient": 0.3},
        }
        file = tmp_path / f"glue{len([*tmp_path.iterdir()])}.yaml"
        file.write_text(json.dumps({**recipe, **changes}), encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run lm-eval's command line in this process; return the file of results that it wrote.

    It bootstraps the standard error of CoLA's metric for minutes.
    """
    monkeypatch.setattr(TaskManager, "__init__", TaskManager.__init__)  # as it is afterwards
    exec(FEWER, {})
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # asks pip and git
    output = tmp_path / "output"

    def run(recipe: str, *words: str, tasks: str = "rte,mnli,stsb") -> Path:
        before = {*output.rglob("results_*.json")}
        model = ["--model", "merged-classifiers", "--model_args", f"config={recipe}"]
        where = ["--tasks", tasks, "--device", "cpu", "--output_path", str(output)]
        monkeypatch.setattr(sys, "argv", ["lm_eval", *model, *where, *words])
        cli_evaluate()
        (file,) = {*output.rglob("results_*.json")} - before
        return file

    return run
