"""What a shell is told to complete: commands, options, names of methods, files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from needed import need

from merge_plugins.cli import main
from merge_plugins.commands.completion import method_names
from merge_plugins.plugins import registry

need("argcomplete", "CI")

Complete = Callable[..., list[str]]
SHELLS = ("bash", "zsh", "fish")
ASK = """
import json, os, sys
from merge_plugins.cli import main
for line in json.loads(sys.argv[1]):
    os.environ.update(COMP_LINE=line, COMP_POINT=str(len(line)))
    def exit_(status): raise SystemExit(status)
    import argcomplete
    finder = argcomplete.CompletionFinder()
    argcomplete.autocomplete = lambda parser, **kwargs: finder(
        parser, exit_method=exit_, output_stream=sys.stdout, **kwargs)
    try: main([])
    except SystemExit: print()
print(json.dumps([name for name in ("torch", "numpy") if name in sys.modules]))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGE_PLUGINS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def complete(cache: Path) -> Complete:
    """Ask as a shell does, many lines in one process; the last line names what it imported."""

    def ask(*lines: str) -> list[str]:
        run = subprocess.run(
            [sys.executable, "-c", ASK, json.dumps(lines)],
            capture_output=True,
            text=True,
            env={**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ", "COLUMNS": "80"},
            cwd=cache.parent,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()

    return ask


def test_commands_options_methods_and_files_are_completed_without_torch(
    complete: Complete, cache: Path
) -> None:
    (cache.parent / "merge.yaml").touch()
    main(["list", "ties"])  # remembers the names
    *found, heavy = complete(
        "merge-plugins ",
        "merge-plugins re",
        "merge-plugins check --",
        "merge-plugins report --for",
        "merge-plugins report --format ",
        "merge-plugins show karch",
        "merge-plugins check mer",
        "merge-plugins completion ",
        "merge-plugins show 'karch",
    )
    commands, report, options, format_, formats, method, files, shells, quoted = (
        line.split() for line in found
    )
    assert {"list", "show", "check", "completion", "report", "demo"} <= {*commands}
    assert report == ["report"]
    assert {"--verify", "--help"} <= {*options}
    assert format_ == ["--format"]
    assert formats == ["markdown", "csv", "latex", "json"]
    assert method == ["karcher"]
    assert files == ["merge.yaml"]
    assert shells == [*SHELLS]
    assert quoted == ["karcher"]
    assert heavy == "[]"


def test_names_are_those_of_the_registry_and_are_remembered(cache: Path) -> None:
    assert method_names() == sorted(registry().named)
    (file,) = cache.glob("methods-*.json")
    file.write_text('["only"]')
    assert method_names() == ["only"]
    file.write_text("damaged")
    assert method_names() == sorted(registry().named)


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_takes_the_code_printed_for_it(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "merge-plugins" in code
    if shutil.which(shell):  # bash everywhere
        run = subprocess.run([shell, "-n"], input=code, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
