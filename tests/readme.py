"""The README, read: its blocks, its tables, and its commands run as a new user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[1] / "README.md"
SETUP = ('pip install -e ".[lm-eval]" && merge-plugins demo', 'pip install -e ".[dev]" && pytest')


class Block(NamedTuple):
    language: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(), flags=re.M | re.S)
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
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
