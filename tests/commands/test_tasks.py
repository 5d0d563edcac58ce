"""`merge-plugins tasks` lists what lm-eval and OpenCompass find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from harness_adapters.commands.tasks import main, opencompass_sets
from harness_adapters.lm_eval.discovery import task_folders

CONFIGS = Path(__file__).parents[2] / "tasks" / "opencompass" / "configs"


def test_every_task_that_lm_eval_finds_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = set(re.findall(r"\w+", capsys.readouterr().out))
    ours = TaskManager(include_path=[*task_folders()], include_defaults=False)
    assert ours.all_tasks
    assert set(ours.all_tasks) <= listed


def test_every_set_of_opencompass_is_listed_without_its_hash(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    listed = set(re.findall(r"\w+", capsys.readouterr().out))
    hashed = re.compile(r"_[0-9a-f]{6}$")
    stems = {file.stem for file in CONFIGS.glob("datasets/*/*.py")}
    assert {hashed.sub("", stem) for stem in stems} <= {*opencompass_sets(CONFIGS)} <= listed
    assert not [name for name in listed if hashed.search(name)]


def test_the_folder_for_opencompass_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--opencompass"]) == 0
    assert Path(capsys.readouterr().out.rstrip("\n")) == CONFIGS
