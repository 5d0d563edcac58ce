"""Every block of the README is run, in order, as a new user would; what it shows is what comes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

README = Path(__file__).parents[2] / "README.md"
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readme_has_exactly_two_set_up_commands_and_ci_runs_them() -> None:
    lines = [line for b in blocks() if b.language == "bash" for line in b.text.splitlines()]
    assert [line for line in lines if line.startswith("pip ")] == list(SETUP)


def test_the_demo_prints_what_the_readme_shows(folder: Path) -> None:
    expected, found = rows(shown_after(SETUP[0])), rows(run("merge-plugins demo", folder))
    assert found.keys() == expected.keys()
    for name, scores in expected.items():  # another processor may round an answer differently
        assert found[name] == pytest.approx(scores, abs=3), name


def test_the_demo_merges_skills_that_no_expert_has_together(folder: Path) -> None:
    scores = rows(shown_after(SETUP[0]))
    skills = ("math", "code", "sea")
    for i, skill in enumerate(skills):
        assert scores[skill][i] >= 90
        assert all(scores[skill][j] <= 60 for j in range(3) if j != i)
    alone = max(scores[name][-1] for name in ("base", *skills))
    merges = [scores[name] for name in scores if name not in ("base", *skills)]
    assert len(merges) >= 4
    assert any(s[-1] >= alone + 15 and min(s[:-1]) >= 50 for s in merges)


def test_the_demo_of_every_method_scores_what_its_page_shows(folder: Path) -> None:
    page = (README.parent / "docs" / "methods.md").read_text(encoding="utf-8").split("\n## ")[0]
    found = rows(run("merge-plugins demo --all --limit 5", folder))
    assert found.keys() == rows(page).keys()


def test_every_command_and_file_of_the_readme_works(folder: Path) -> None:
    for block in blocks():
        if block.language == "bash":
            for command in block.text.splitlines():
                if command not in SETUP:
                    output = run(command, folder)
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
