"""inspect_ai asks merges by recipe, and keeps apart what it knows of two merges of one name."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from needed import need
from parrots import CATS, Parrots, cats

from merge_plugins import Recipe, identity

TASK = f"""
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate

@task
def cats():
    samples = [Sample(input=f"What do {{n}} cats do?", target={CATS!r}) for n in range(3)]
    return Task(samples, solver=generate(cache=True, max_tokens=8), scorer=match("exact"))
"""
pytestmark = pytest.mark.filterwarnings("ignore")  # what inspect_ai warns of is not ours to mend


@pytest.fixture(scope="session", autouse=True)
def inspect_ai() -> None:
    need("inspect_ai.model", "REQUIRE_INSPECT")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Parrots:
    return cats(tmp_path_factory.mktemp("parrots"))


@pytest.fixture
def recipe(models: Parrots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a recipe and a task; inspect_ai keeps everything in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("task.py").write_text(TASK)
    return models.recipe(tmp_path / "merge.yaml")


def inspect(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("inspect"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "INSPECT_DISPLAY": "plain"},
    )


def evaluated(model: str, log_dir: str = "logs") -> Any:
    """Run inspect's own command; return its newest log."""
    words = ("task.py", "--model", model, "--log-dir", log_dir, "-M", "do_sample=false")
    done = inspect("eval", *words)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return newest(log_dir)


def newest(log_dir: str) -> Any:
    from inspect_ai.log import list_eval_logs, read_eval_log

    return read_eval_log(list_eval_logs(log_dir)[0])


def accuracy(log: Any) -> float:
    assert log.status == "success", log.error
    return float(log.results.scores[0].metrics["accuracy"].value)


def test_an_edited_recipe_is_asked_anew(recipe: Path, models: Parrots) -> None:
    good = evaluated("merged/merge.yaml")
    digest = identity.digest(Recipe.load(recipe))
    assert good.eval.model == f"merged/merge.yaml@{digest}"
    assert accuracy(good) == 1.0
    models.recipe(recipe, -1.0)
    refused = inspect("eval", "task.py", "--model", good.eval.model, "--log-dir", "refused")
    assert refused.returncode == 1
    assert f"merge-plugins: merge.yaml had the digest {digest}" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
    wrecked = evaluated(f"merged/merge.yaml@{identity.digest(Recipe.load(recipe))}")
    assert accuracy(wrecked) == 0.0


def test_its_plugin_is_cheap_to_import() -> None:
    points = metadata.entry_points(group="inspect_ai")
    assert "harness_adapters.inspect_ai" in {point.value for point in points}
    code = "import sys, harness_adapters.inspect_ai; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
