"""The ledger is the truth: whatever is cut off it, a search goes on from what is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nearness
import pytest

from merge_plugins import load_plugin
from merge_plugins.errors import MergeError
from merge_plugins.search.ledger import Ledger
from merge_plugins.search.settings import SearchFile
from merge_plugins.search.study import Study

N = 60


@pytest.fixture(scope="module")
def searched(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    assert len([*nearness.run(nearness.study(models, folder, budget={"trials": N}))]) == N
    return folder


def test_a_ledger_cut_anywhere_in_its_last_line_is_whole_without_it(
    searched: Path, tmp_path: Path
) -> None:
    first, *_, before, last = (searched / "search.jsonl").read_bytes().splitlines(keepends=True)
    content, start, header = first + before + last, len(first + before), json.loads(first)
    for end in range(start, len(content)):
        (tmp_path / "search.jsonl").write_bytes(content[:end])
        assert len(Ledger.open(tmp_path, header).trials) == 1
        assert (tmp_path / "search.jsonl").read_bytes() == content[:start]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_search_cut_in_its_last_line_goes_on_to_the_same_end(
    models: Path, searched: Path, tmp_path: Path, share: float
) -> None:
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    content = (searched / "search.jsonl").read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    (tmp_path / "search.jsonl").write_bytes(content[: start + int(share * (len(content) - start))])
    (again,) = nearness.run(nearness.study(models, tmp_path, budget={"trials": N}))
    last = Ledger.existing(searched).trials[-1]
    assert (again.number, again.digest, again.scores) == (last.number, last.digest, last.scores)
    assert len(Ledger.existing(tmp_path).trials) == N


def test_a_long_last_line_is_cut_whole(tmp_path: Path) -> None:
    (tmp_path / "search.jsonl").write_bytes(b'{"a":1}\n' + b"x" * 200_000)
    assert Ledger.open(tmp_path, {"a": 1}).trials == []
    assert (tmp_path / "search.jsonl").read_bytes() == b'{"a":1}\n'
    (tmp_path / "search.jsonl").write_bytes(b"x" * 200_000)
    Ledger.open(tmp_path, {"a": 1})
    assert (tmp_path / "search.jsonl").read_bytes() == b'{"a":1}\n'


def test_a_damaged_line_is_named(searched: Path, tmp_path: Path) -> None:
    lines = (searched / "search.jsonl").read_bytes().splitlines(keepends=True)
    lines[7] = lines[7][:50] + b"\n"
    (tmp_path / "search.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(MergeError, match=r"search\.jsonl, line 8 is no line of a ledger"):
        Ledger.existing(tmp_path)


def test_another_search_in_the_folder_is_refused_with_the_difference(
    models: Path, searched: Path
) -> None:
    with pytest.raises(MergeError, match=r'search\.sampler was "random" and is "tpe"'):
        nearness.study(models, searched, sampler="tpe")
    other = nearness.Nearness(models, identity="nearness 2")
    with pytest.raises(MergeError, match='scores was "nearness 1" and is "nearness 2"'):
        nearness.study(models, searched, other)


def test_the_budget_may_grow(models: Path, searched: Path) -> None:
    assert not [*nearness.run(nearness.study(models, searched, budget={"trials": N}))]
    assert len([*nearness.run(nearness.study(models, searched, budget={"trials": N + 2}))]) == 2


def test_hours_count_over_all_runs(models: Path, tmp_path: Path) -> None:
    slow = nearness.Nearness(models, seconds=0.05)
    first = [*nearness.run(nearness.study(models, tmp_path, slow, budget={"hours": 0.5 / 3600}))]
    assert 5 <= len(first) <= 10
    assert not [*nearness.run(nearness.study(models, tmp_path, slow, budget={"hours": 0.3 / 3600}))]


def test_a_folder_without_a_search_says_so(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"holds no search\.jsonl"):
        Ledger.existing(tmp_path)


def test_a_search_does_not_go_on_with_other_code_of_a_plugin(
    models: Path, tmp_path: Path, plugin_file: Callable[..., Path]
) -> None:
    call = "return self.scale * slot.stacked().mean(dim=0)"
    own = {
        "merge_method": "own",
        "models": ["a", "b"],
        "parameters": {"scale": {"low": 0.5, "high": 1.0}},
        "search": {"sampler": "random", "budget": {"trials": 2}},
    }

    def study() -> Study:
        file = SearchFile.parse(own, models)
        return Study.open(file, tmp_path / "out", nearness.Nearness(models))

    load_plugin(plugin_file(call))
    assert len([*nearness.run(study())]) == 2
    assert not [*nearness.run(study())]
    load_plugin(plugin_file(call + " + 0"))
    with pytest.raises(MergeError, match=r'plugins\.own\.py was "[0-9a-f]{12}" and is "[0-9a-f]'):
        study()
