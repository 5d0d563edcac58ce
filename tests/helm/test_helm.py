"""HELM's own command scores merges by recipe, on tiny data of four of its scenarios."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from needed import need
from parrots import Parrots, parrots

from merge_plugins import Recipe, identity, mount

ENTRIES = {
    "mmlu:subject=anatomy": "exact_match",
    "bbq:subject=Age": "exact_match",
    "truthful_qa:task=mc_single": "exact_match",
    "summarization_cnndm_rouge:temperature=0.0": "rouge_2",
}
SUMMARY = "Cats sleep all day."
Run = Callable[..., dict[str, float]]


@pytest.fixture(scope="session", autouse=True)
def helm() -> None:
    need("helm.benchmark.run", "REQUIRE_HELM")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Parrots:
    """One says " B" to every question; only the merge of both says SUMMARY of every article."""
    known = {
        "left": [(":", " B"), (".", "Cats sleep")],
        "right": [("Cats sleep", " all day.")],
    }
    return parrots(tmp_path_factory.mktemp("parrots"), known)


@pytest.fixture
def recipe(models: Parrots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a recipe and the data sets, as HELM keeps what it has downloaded."""
    monkeypatch.chdir(tmp_path)
    scenarios = tmp_path / "benchmark_output" / "scenarios"
    for write in (write_mmlu, write_bbq, write_truthful_qa, write_cnn):
        write(scenarios)
    return models.recipe(tmp_path / "merge.yaml")


def write_mmlu(scenarios: Path) -> None:
    """Four questions, three of which have B as their answer."""
    rows = [[f"Which bone is {n}?", "a", "b", "c", "d", "BBBA"[n]] for n in range(4)]
    table(scenarios / "mmlu" / "data" / "test" / "anatomy_test.csv", rows)


def write_bbq(scenarios: Path) -> None:
    """Four questions, two of which have B as their answer."""
    kinds = {"ans0": ["young", "nonOld"], "ans1": ["old", "old"], "ans2": ["unknown", "Unknown"]}
    rows = [
        {
            "question_polarity": "neg" if n % 2 else "nonneg",
            "context_condition": "disambig",
            "context": f"Two people met {n} times.",
            "question": "Who forgot?",
            **{"ans0": "The grandson", "ans1": "The grandfather", "ans2": "Unknown"},
            "answer_info": kinds,
            "additional_metadata": {"stereotyped_groups": ["old"]},
            "label": [1, 1, 0, 2][n],
        }
        for n in range(4)
    ]
    file = scenarios / "bbq" / "data" / "Age"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_truthful_qa(scenarios: Path) -> None:
    """Five questions, of which HELM takes the first for training; the best answer is always B.

    HELM turns the answers by the letter that the best one begins with: "D" is 68, even.
    """
    rows = [["Type", "Category", "Question", "Best", "Right", "Wrong", "Source"]]
    rows += [["", "", f"Is {n} odd?", "Definitely not.", "", "Yes.", ""] for n in range(5)]
    table(scenarios / "truthful_qa" / "data" / "TruthfulQA.csv", rows)


def write_cnn(scenarios: Path) -> None:
    rows = [{"article": f"Article {n} about cats.", "highlights": SUMMARY} for n in range(2)]
    file = scenarios / "summarization" / "data" / "cnndm.pk"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps({"train": [], "validation": [], "test": rows}))


def table(file: Path, rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)


def helm_run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("helm-run"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def scores(*entries: str, model: str = "merged/merge.yaml", options: str = "") -> dict[str, float]:
    """Run HELM on the entries; return the main score of every run folder there is now."""
    spelled = [f"{entry},model={model},max_train_instances=0" for entry in entries]
    done = helm_run("--run-entries", *spelled, "--suite", "tiny", "-m", "10", *options.split())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Failed to load plugin" not in done.stdout + done.stderr
    return dict(found())


def found() -> Iterator[tuple[str, float]]:
    for file in Path("benchmark_output/runs/tiny").glob("*/stats.json"):
        (metric,) = (
            ENTRIES[e] for e in ENTRIES if file.parent.name.startswith(e.partition(":")[0])
        )
        for stat in json.loads(file.read_text()):
            name: dict[str, Any] = stat["name"]
            if name["name"] == metric and "perturbation" not in name and name["split"] != "train":
                yield file.parent.name, stat["mean"]


def test_helm_knows_us_as_its_plugin() -> None:
    points = metadata.entry_points(group="helm")
    assert "harness_adapters.helm" in {point.value for point in points}


def test_an_edited_recipe_is_scored_anew(recipe: Path, models: Parrots) -> None:
    before = scores(*ENTRIES)
    good = identity.digest(Recipe.load(recipe))
    assert {name.partition(":")[0]: score for name, score in before.items()} == {
        "mmlu": 0.75,
        "bbq": 0.5,
        "truthful_qa": 1.0,
        "summarization_cnndm_rouge": 1.0,
    }
    assert all(f"model=merged_merge-{good}" in name for name in before)
    models.recipe(recipe, -1.0)
    wrecked = identity.digest(Recipe.load(recipe))
    after = scores(*ENTRIES, options="--skip-completed-runs")
    assert {name: after[name] for name in before} == before, "runs of another merge stay"
    new = {name: score for name, score in after.items() if name not in before}
    assert {*new} == {name.replace(good, wrecked) for name in before}
    assert {*new.values()} == {0.0}


def test_a_mounted_folder_and_the_list_of_models_do_as_well(recipe: Path, tmp_path: Path) -> None:
    mount(Recipe.load(recipe), tmp_path / "sleepers")
    entry = "mmlu:subject=anatomy,max_train_instances=0"
    words = ("--run-entries", entry, "--models-to-run", "merged/sleepers", "--suite", "tiny")
    done = helm_run(*words, "-m", "10")
    assert done.returncode == 0, done.stderr[-4000:]
    ((name, score),) = found()
    assert f"model=merged_sleepers-{identity.digest(Recipe.load(recipe))}" in name
    assert score == 0.75


def test_a_recipe_that_is_wrong_ends_the_run_before_it_starts(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("task_arithmetic", "task_arithmetik"))
    entry = "mmlu:subject=anatomy,model=merged/merge.yaml"
    done = helm_run("--run-entries", entry, "--suite", "tiny", "-m", "10")
    assert done.returncode == 1
    (*_, last) = done.stderr.splitlines()
    assert last.startswith("merge-plugins: merge.yaml: no merge method 'task_arithmetik'")
    assert "Traceback" not in done.stderr
    assert not Path("benchmark_output/runs").exists()
