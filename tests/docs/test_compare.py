"""docs/compare.md shows what its commands print on the models that come with the package."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest
from readme import README, run_here

from merge_plugins.demo import MODELS

PAGE = README.parent / "docs" / "compare.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def test_the_page_shows_what_the_commands_print(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|text)\n(.*?)\n```", text, re.M | re.S)
    shutil.copytree(MODELS, tmp_path / "family")
    shown = {
        command: block.splitlines()
        for command, block in itertools.pairwise(blocks)
        if command.startswith("merge-plugins compare family")
    }
    assert len(shown) == 2
    for command, expected in shown.items():
        printed = run_here(command, tmp_path).splitlines()
        start = [*map(words, printed)].index(words(expected[0]))
        for line, wanted in zip(printed[start:], expected, strict=False):
            assert words(line) == words(wanted)
            assert numbers(line) == pytest.approx(numbers(wanted), abs=0.21)
    assert (tmp_path / "compare.png").is_file()


def words(line: str) -> list[str]:
    return NUMBER.sub("#", line).split()


def numbers(line: str) -> list[float]:
    return [float(each) for each in NUMBER.findall(line)]
