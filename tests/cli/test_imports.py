"""What each line of the command imports: nothing heavy before it is known to be needed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec

import pytest

RUN = """
import contextlib, io, json, sys
{first}
before, said = set(sys.modules), io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    {then}
print(json.dumps([*sys.modules.keys() - before]))
"""
COMMAND = """
    from merge_plugins.__main__ import main
    for line in {lines}:
        sys.argv = ["merge-plugins", *line.split()]
        with contextlib.suppress(SystemExit):
            main()
        assert not {heavy} & sys.modules.keys(), line
"""
HEAVY = {"torch", "numpy", "transformers", "lm_eval", "openai", "matplotlib"}
LIGHT = (
    *("--version", "--help", "", "reprot", "--bogus", "check"),
    *(f"{name} --help" for name in ("list", "show", "compare", "check", "plan", "save", "mount")),
    *("completion --help", "check recipe.yaml --verfy", "judge x.jsonl --modl y"),
    *(f"{name} --help" for name in ("demo", "judge", "pairs", "report", "search", "sea-data")),
    "swap --help",
)
"""Lines that end before the work of a command is imported."""


def imported(then: str, first: str = "") -> set[str]:
    """Run code in a process of its own; return the modules that it imported after the first."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(first=first, then=then)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_no_torch_before_a_command_runs() -> None:
    modules = imported(COMMAND.format(lines=LIGHT, heavy=HEAVY))
    assert {"merge_plugins.cli", "harness_adapters.commands.report"} <= modules


def test_no_torch_before_a_public_name_needs_it() -> None:
    modules = imported("import merge_plugins; merge_plugins.MergeError, merge_plugins.__version__")
    assert "merge_plugins.errors" in modules
    assert not packages(modules) & HEAVY


needs_no_mergekit = pytest.mark.skipif(
    find_spec("mergekit") is not None, reason="the list holds mergekit's methods: imports mergekit"
)


@pytest.mark.parametrize("line", [pytest.param("list", marks=needs_no_mergekit), "show ties"])
def test_methods_are_described_with_torch_and_nothing_heavy(line: str) -> None:
    modules = imported(COMMAND.format(lines=[line], heavy=set()), first="import torch")
    assert {"merge_plugins.commands.methods", "merge_plugins.commands.show"} & modules
    light = {"packaging", "pluggy", "safetensors", "tqdm", "xxhash", "yaml"}
    both = {"numpy", "torch"}  # torch imports numpy, and either a part of its own when it is used
    own = {"harness_adapters", "merge_plugins"}
    assert packages(modules) & packages_distributions().keys() <= {*light, *both, *own}
