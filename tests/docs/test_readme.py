"""Every block of the README is run, in order, as a new user would; what it shows is what comes.

The commands with an output beside them are processes of their own, the others run in this one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from readme import SEARCH, SETUP, blocks, rows, run, run_here, shown_after

from merge_plugins.plugins import registry


def test_the_readme_has_exactly_two_set_up_commands_and_ci_runs_them() -> None:
    lines = [line for b in blocks() if b.language == "bash" for line in b.text.splitlines()]
    assert [line for line in lines if line.startswith("pip ")] == list(SETUP)


def test_every_command_and_file_of_the_readme_works(tmp_path: Path) -> None:
    folder = tmp_path
    try:
        run_all(folder)
    finally:
        for label in [*registry().files]:  # what --plugin and plugin= loaded here
            registry().unload(label)


def run_all(folder: Path) -> None:
    for block in blocks():
        if block.language == "bash":
            for command in block.text.splitlines():
                if "task_arithmetic" in command:
                    assert_shows(run(command, folder), shown_after(command))
                elif command not in (*SETUP, SEARCH):  # tests/docs/test_demo.py runs that
                    run_here(command, folder)
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
