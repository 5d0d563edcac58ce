"""The pages that a newcomer follows: their files are written and their commands run, in order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from readme import README, blocks, run_here

from merge_plugins.demo import MODELS

DOCS = README.parent / "docs"


@pytest.mark.parametrize("name", ["first_merge", "recipes"])
def test_every_file_and_command_of_a_page_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(DOCS / f"{name}.md")
    if not any("demo --copy family" in block.text for block in found):
        shutil.copytree(MODELS, "family")
    assert {block.language for block in found} >= {"bash", "yaml"}
    for block in found:
        if block.language == "yaml":  # a file, named in its first line
            first, _, _ = block.text.partition("\n")
            Path(first.removeprefix("# ")).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for command in block.text.splitlines():
                run_here(command, tmp_path)
        elif block.language == "python":
            exec(compile(block.text, name, "exec"), {})
