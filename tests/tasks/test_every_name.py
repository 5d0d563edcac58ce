"""Names of tasks beside lm-eval's own: it reads its 14,000 files in 12 s, here once for all."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from harness_adapters.lm_eval.discovery import task_folders

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def everything():
    """Every name that lm-eval knows without being told, and what it said while it looked."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    yield set(TaskManager().all_tasks), said
    logging.getLogger().removeHandler(handler)


def test_our_tasks_are_found_without_include_path(everything):
    texts = [file.read_text() for file in (REPOSITORY / "tasks").rglob("*.yaml")]
    names = {name for text in texts for name in re.findall(r"^(?:task|group): (\S+)$", text, re.M)}
    assert names
    assert names <= everything[0]


def test_no_name_of_ours_shadows_one_of_lm_evals(everything):
    every, said = everything
    assert not [line for line in said if "overrides existing" in line or "Duplicate" in line]
    ours = set(TaskManager(include_path=list(task_folders()), include_defaults=False).all_tasks)
    assert {"gsm8k_alpaca_mergelm", "open_llm_leaderboard_v1", "twin_merging"} <= ours < every


def test_every_task_of_the_page_on_the_seeds_is_known(everything):
    page = (REPOSITORY / "docs" / "from_the_seeds.md").read_text(encoding="utf-8")
    named = {name for names in re.findall(r"--tasks ([\w,]+)", page) for name in names.split(",")}
    ours = {"gsm8k_cot_zeroshot_alpaca", "gsm8k_alpaca_mergelm", "humaneval_alpaca", "sea_xquad_th"}
    assert ours <= named <= everything[0]
