"""One comparison with every lm-eval release that we support, each in its own environment.

Opt in, because every release takes minutes to install:
MERGE_PLUGINS_LM_EVAL_VERSIONS="0.4.5 0.4.13" pytest tests/lm_eval/test_lm_eval_releases.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
WANTED = os.environ.get("MERGE_PLUGINS_LM_EVAL_VERSIONS", "").split()
OF_THEIR_TIME = {
    "0.4.5": ("transformers==4.46.3", "datasets<4"),
    "0.4.8": ("transformers==4.49.0", "datasets<4"),
    "0.4.9.1": ("transformers==4.57.3", "datasets<4"),
    "0.4.10": ("transformers==4.57.3",),
    "0.4.11": ("transformers==4.57.3",),
}
TASKS = "tiny_choice,tiny_generate,tiny_rolling"
FIND_OURS = """
from lm_eval.tasks import TaskManager
assert "merge_demo" in TaskManager().all_tasks
"""

pytestmark = pytest.mark.skipif(not WANTED, reason="set MERGE_PLUGINS_LM_EVAL_VERSIONS")


@pytest.mark.parametrize("version", WANTED)
def test_the_same_answers_with_release(version, command, family, saved, tmp_path):
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    constraints = ("--constraint", REPOSITORY / ".ci" / "constraints.txt")
    release = (f"lm-eval[hf]=={version}", *OF_THEIR_TIME.get(version, ()))
    install = (python, "-m", "pip", "install", "--quiet", *constraints)
    subprocess.run([*install, *release, REPOSITORY], check=True)
    subprocess.run([python, "-c", FIND_OURS], check=True, cwd=tmp_path)

    run = (str(python.with_name("lm_eval")), "--tasks", TASKS, "--device", "cpu")
    stock = command(*run, "--model", "hf", "--model_args", f"pretrained={saved}")
    recipe = ",".join(f"{key}={value}" for key, value in family.recipe().items())
    merged = command(*run, "--model", "merged", "--model_args", recipe)
    assert merged.answers == stock.answers
    assert merged.scores == stock.scores
    assert merged.results["config"]["merge"]["recipe"]["merge_method"] == "linear"
