"""One tree of commands, ours and the adapters': listed, suggested and run alike."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from merge_plugins.cli import main
from merge_plugins.cli.adapters import GROUP
from merge_plugins.cli.own import GROUPS
from merge_plugins.plugins import registry

Start = Callable[..., "subprocess.Popen[str]"]
METADATA = "Metadata-Version: 2.1\nName: merge-guest\nVersion: 1.0\n"
POINTS = """
[merge_plugins.commands]
blow-up = guest.broken:main
count = guest.counting:main
garbled = guest.garbled:main
greet = guest.greeting:main
list = guest.greeting:main
silent = guest.greeting:silent
slow = guest.slow:main
strayed = plain.textwrap:dedent
"""
MODULES = {
    "__init__": "raise RuntimeError('nobody needs the package for a line of help')",
    "broken": 'import torch\n\ndef main(words):\n    """Fail in style.\n\n    At length."""\n',
    "counting": "from merge_plugins.cli import takes\n\ndef declare(parser):\n"
    "    parser.add_argument('--number', type=int, default=1)\n\n"
    "@takes(declare, group='scores')\ndef main(options):\n"
    '    """Count."""\n    print("counts", options.number)\n    return options.number\n',
    "garbled": "def main(words:\n",
    "greeting": 'def main(words):\n    """Greet everyone."""\n    print("hello", *words)\n'
    "    return 3\n\ndef silent(words):\n    return 0\n",
    "slow": "import time\nprint('importing', flush=True)\ntime.sleep(60)\n",
}


COMMAND = (
    "import signal, sys; from merge_plugins.__main__ import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # background jobs ignore it
    "sys.exit(main())"
)


@pytest.fixture
def guest(tmp_path: Path) -> Start:
    """Start the command in a process that sees an adapter's distribution."""
    info = tmp_path / "merge_guest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "guest").mkdir()
    for name, source in MODULES.items():
        (tmp_path / "guest" / f"{name}.py").write_text(source)
    (tmp_path / "plain.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        )

    return start


def said(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process; return its status and what it wrote to both streams."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_help_has_a_line_for_each_command_and_runs_nothing_of_an_adapter(guest: Start) -> None:
    status, helped, err = said(guest("--help"))
    assert (status, err) == (0, "")
    commands = helped.splitlines()
    lines = dict(line.split(maxsplit=1) for line in commands if line.startswith("  "))
    for command in (command for group in GROUPS.values() for command in group):
        assert lines[command.name] == command.summary
    assert lines["blow-up"] == "Fail in style."
    assert lines["greet"] == "Greet everyone."
    assert lines["garbled"] == "guest.garbled:main"
    assert lines["strayed"] == "plain.textwrap:dedent"
    assert lines["silent"] == "guest.greeting:silent"
    assert helped.count("\n  list ") == 1
    assert "\n  count " in helped[helped.index("scores:") : helped.index("data and tasks:")]
    assert helped.index("from other packages:") < helped.index("\n  greet ")


def test_an_adapters_command_takes_the_words_after_its_name(guest: Start, tmp_path: Path) -> None:
    (tmp_path / "guest" / "__init__.py").unlink()
    assert said(guest("greet", "--loudly", "you")) == (3, "hello --loudly you\n", "")


def test_an_adapter_that_declares_its_arguments_gets_them_parsed(
    guest: Start, tmp_path: Path
) -> None:
    (tmp_path / "guest" / "__init__.py").unlink()
    assert said(guest("count", "--number", "3")) == (3, "counts 3\n", "")
    assert "usage: merge-plugins count [-h] [--number NUMBER]" in said(guest("count", "-h"))[1]


def test_an_adapter_takes_no_command_of_ours(guest: Start) -> None:
    assert "usage: merge-plugins list" in said(guest("list", "--help"))[1]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_import_without_a_word(
    number: signal.Signals, guest: Start, tmp_path: Path
) -> None:
    (tmp_path / "guest" / "__init__.py").unlink()
    process = guest("slow")
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    assert said(process) == (-number, "", "")


@pytest.mark.parametrize(
    ("given", "meant"), [("chek", "check"), ("reprot", "report"), ("sea_data", "sea-data")]
)
def test_a_mistyped_command_is_told_the_nearest(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([given, "recipe.yaml"])
    out, err = capsys.readouterr()
    assert f"no command {given!r}; did you mean {meant!r}?" in err
    assert out == ""


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("check --verfy merge.yaml", "no option '--verfy'; did you mean '--verify'?"),
        ("judge samples.jsonl --modl x", "no option '--modl'; did you mean '--model'?"),
        ("save merge.yaml out --max-shrd-size=1GB", "did you mean '--max-shard-size'?"),
        ("list -json", "no option '-json'; did you mean '--json'?"),
        ("plan merge.yaml --xyzzy", "no option '--xyzzy'. Run 'merge-plugins plan --help'"),
        ("--bogus", "merge-plugins: no option '--bogus'. Run"),
        ("check", "error: the following arguments are required: RECIPE"),
        ("compare a -- --bse", ""),
    ],
)
def test_a_mistyped_option_is_told_the_nearest(
    line: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2") if meant else contextlib.nullcontext():
        main(line.split())
    out, err = capsys.readouterr()
    assert meant in err
    assert out == ""
    assert "no option" not in err or len(err.splitlines()) == 1


def test_a_bare_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    helped = capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err == helped


def test_each_of_our_commands_has_one_line_of_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    helped = capsys.readouterr().out.partition("first steps:")[2].splitlines()
    ours = [point for point in entry_points(group=GROUP) if point.module.startswith("harness_ad")]
    n = len(ours) + sum(map(len, GROUPS.values()))
    assert len([line for line in helped if line.startswith("  ")]) == n


@pytest.mark.parametrize("columns", ["1", "60"])
def test_help_fits_the_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


TAKE_A_PLUGIN = {"list", "show", "compare", "check", "plan", "save", "mount"}


def test_every_command_on_methods_or_recipes_takes_a_plugin() -> None:
    commands = {command.name: command for group in GROUPS.values() for command in group}
    for name, command in commands.items():
        parser = ArgumentParser()
        assert command.arguments is not None
        command.arguments(parser)
        takes = any("--plugin" in action.option_strings for action in parser._actions)
        reads = any(action.dest in ("recipe", "models", "method") for action in parser._actions)
        assert takes == (name in TAKE_A_PLUGIN)
        assert takes or not reads


def test_a_plugin_in_a_file_is_used_by_each_command(
    plugin_file: Callable[..., Path],
    llamas: Mapping[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = "return self.scale * slot.stacked().median(dim=0).values"
    plugin = ("--plugin", str(plugin_file(call)))
    short = f"method=own,models={llamas['math']}+{llamas['code']}"
    for words in (("check", short), ("plan", short), ("show", "own"), ("list",)):
        assert main(words) == (1 if words != ("list",) else 0)
        capsys.readouterr()
        assert main([*words, *plugin]) == 0
        assert "own" in capsys.readouterr().out
        registry().unload("own.py")
    assert main(["check", f"{short},plugin={plugin[1]}"]) == 0
    (tmp_path / "no.py").write_text("import nowhere_to_be_found\n")
    assert main(["check", short, "--plugin", str(tmp_path / "no.py")]) == 1
    assert "no.py failed: ModuleNotFoundError: " in capsys.readouterr().err
