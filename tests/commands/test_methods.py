"""`merge-plugins list` and `show`: what there is, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_plugins import Recipe
from merge_plugins.cli import main
from merge_plugins.commands.example import example
from merge_plugins.demo import family
from merge_plugins.engine import open_merge
from merge_plugins.plugins import registry

METHODS = {**registry().methods}  # those of files come and go
REQUIRED = {
    (method.name, p.name)
    for method in METHODS.values()
    for p in method.parameters.values()
    if p.required
}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 100, 300])
def test_a_list_has_every_method_under_a_heading_and_fits(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = printed(capsys, "list").splitlines()
    assert max(map(len, lines)) <= min(columns, 100)
    heads = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert heads == list(dict.fromkeys(heads))
    assert "task vectors, what each model changed in the base:" in heads
    entries = [line.split()[0] for line in lines if line[:2] == "  " and line[2:3].strip()]
    assert sorted(entries) == sorted(METHODS)


@pytest.mark.parametrize(
    ("pattern", "held", "left_out"),
    [
        ("ties", {"ties", "dare_ties", "ties_merging"}, {"linear", "slerp"}),
        ("TIES*", {"ties", "ties_merging"}, {"dare_ties"}),
        ("nodrop_ada_row", {"nodrop_elect"}, {"ties"}),  # an alias
        ("Yadav", {"ties"}, {"karcher"}),  # a paper
        ("each request", {"twin_merging", "emr"}, {"ties"}),  # a heading
    ],
)
def test_a_list_of_what_matches(
    pattern: str, held: set[str], left_out: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = {m["name"] for m in json.loads(printed(capsys, "list", pattern, "--json"))["methods"]}
    assert held <= found
    assert not found & left_out
    shown = printed(capsys, "list", pattern)
    assert {name for name in METHODS if f"\n  {name} " in shown} == found


def test_a_pattern_that_nothing_matches_is_told_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "linaer"]) == 1
    err = capsys.readouterr().err
    assert "no merge method is like 'linaer'; did you mean 'linear'?" in err


def test_what_must_be_set_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert ("slerp", "t") in REQUIRED
    for name in METHODS:
        shown = printed(capsys, "show", name)
        marked = set(re.findall(r"^  (\w+)\*", shown, re.M))
        assert marked == {parameter for method, parameter in REQUIRED if method == name}, shown


MODELS = {f"org/{name}": str(path) for name, path in family().items()}


def named(value: Any, folder: Path) -> Any:
    """Put models and files that exist in place of an example's."""
    if isinstance(value, Mapping):
        return {key: named(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [named(one, folder) for one in value]
    if isinstance(value, str) and value.endswith(".jsonl"):
        (folder / value).write_text('{"prompt": "1 + 1 =", "response": " 2"}\n')
        return str(folder / value)
    return MODELS.get(value, value)


@pytest.mark.parametrize("name", METHODS)
def test_the_example_of_a_method_can_be_merged(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(capsys, "show", name)
    recipe = yaml.safe_load(shown.partition("A recipe to start from:\n\n")[2])
    assert recipe == example(METHODS[name])
    plan = open_merge(Recipe.from_mapping(named(recipe, tmp_path))).plan
    assert plan.method.name == name
    assert (
        any(tensor.kernel is not None for tensor in plan.tensors.values()) or METHODS[name].copies
    )
