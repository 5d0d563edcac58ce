"""The README, read: its blocks, its tables, and its commands run as a new user would."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness_adapters.lm_eval.discovery import task_folders

README = Path(__file__).parents[1] / "README.md"
SETUP = ('pip install -e ".[lm-eval]" && merge-plugins demo', 'pip install -e ".[dev]" && pytest')
SEARCH = "merge-plugins search --demo"


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path = README) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.M | re.S)
    return [Block(*pair) for pair in found]


def shown_after(command: str) -> str:
    """The output that the README shows after a command."""
    all_blocks = blocks()
    at = next(i for i, block in enumerate(all_blocks) if command in block.text)
    assert all_blocks[at + 1].language == "text"
    return all_blocks[at + 1].text


def rows(text: str) -> dict[str, list[float]]:
    """Rows of a table by their first cell: the numbers in them, plus-minus parts left out."""
    table = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [float(cell) for cell in cells if re.fullmatch(r"\d+\.\d+", cell)]
        if line.startswith("|") and numbers:
            table[cells[0]] = numbers
    return table


def run(command: str, folder: Path) -> str:
    return completed(command, folder).stdout


def completed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def run_here(command: str, folder: Path) -> str:
    """Run a command of this environment without another start of Python, for seconds each.

    lm-eval does not read its own 14,000 tasks.
    """
    from lm_eval.tasks import TaskManager

    program, *arguments = shlex.split(command)
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=program)
    init, ours = TaskManager.__init__, {"include_path": [*task_folders()]}

    @functools.wraps(init)
    def alone(*args: Any, **given: Any) -> None:
        init(*args, **{**given, **ours, "include_defaults": False})

    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(folder)
        patch.setattr(TaskManager, "__init__", alone)
        patch.setattr(sys, "argv", [program, *arguments])
        assert not script.load()(), command
    return output.getvalue()
