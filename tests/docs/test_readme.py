"""Every block of the README is run, in order, as a new user would; what it shows is what comes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from readme import SETUP, blocks, rows, run, shown_after

from harness_adapters.lm_eval.discovery import task_folders
from merge_plugins import cli


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Run a command of ours or of lm-eval in this process, which has imported all it needs.

    Of lm-eval's 14,000 files of tasks, which every start of it reads, only ours.
    """
    from lm_eval import tasks
    from lm_eval.__main__ import cli_evaluate

    original = tasks.TaskManager.__init__

    def ours_alone(self: object, **given: object) -> None:
        ours = {"include_path": [*task_folders()], "include_defaults": False}
        original(self, **{**given, **ours})

    monkeypatch.setattr(tasks.TaskManager, "__init__", ours_alone)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    programs = {"merge-plugins": cli.main, "lm_eval": cli_evaluate}

    def run_here(command: str) -> str:
        words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", words)
        assert not programs[words[0]]()
        return capsys.readouterr().out

    return run_here


def is_process(command: str) -> bool:
    """Whether a command is started as users start it: the first one of each program."""
    return command.startswith("merge-plugins demo") or "task_arithmetic" in command


def test_the_readme_has_exactly_two_set_up_commands_and_ci_runs_them() -> None:
    lines = [line for b in blocks() if b.language == "bash" for line in b.text.splitlines()]
    assert [line for line in lines if line.startswith("pip ")] == list(SETUP)


def test_every_command_and_file_of_the_readme_works(
    tmp_path: Path, here: Callable[[str], str]
) -> None:
    folder = tmp_path
    for block in blocks():
        if block.language == "bash":
            for command in block.text.splitlines():
                if command not in SETUP:
                    output = run(command, folder) if is_process(command) else here(command)
                    if "task_arithmetic" in command:
                        assert_shows(output, shown_after(command))
        elif block.text.startswith("# "):  # a file, named in its first line
            name = block.text.splitlines()[0].removeprefix("# ")
            (folder / name).write_text(block.text)
        elif "@hookimpl" in block.text:  # the plugin that the entry point below names
            (folder / "merge_median.py").write_text(block.text)
        elif block.language == "python":
            (folder / "example.py").write_text(block.text)
            assert int(run(f"{sys.executable} example.py", folder).split()[-1]) > 0
        elif block.language == "toml":
            points = block.text.replace("project.entry-points.", "").replace('"', "")
            info = folder / "merge_median-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                "Metadata-Version: 2.1\nName: merge-median\nVersion: 1.0\n"
            )
            (info / "entry_points.txt").write_text(points)
            assert "median" in run("merge-plugins list", folder)
            short = "method=median,base=family/base,models=family/math+family/code"
            assert run(f"merge-plugins check {short}", folder).startswith("median of 2 models")


def assert_shows(output: str, expected: str) -> None:
    found = rows(output)
    for name, numbers in rows(expected).items():
        assert found[name] == pytest.approx(numbers, abs=0.05), name
