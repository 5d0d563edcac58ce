"""A model that changes while it is merged is an error that names the file, in every output."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from merge_plugins import Recipe, identity, load_merged, merged_tensors, mount, overwrite, save
from merge_plugins.cli import main
from merge_plugins.engine import MergedTensor
from merge_plugins.errors import CheckpointError, MismatchError
from merge_plugins.folders import cache_folder
from merge_plugins.outputs import mount as mounting
from merge_plugins.plugins import registry

Spell = Callable[..., Recipe]


@pytest.fixture
def expert(llamas: Mapping[str, str], tmp_path: Path) -> Path:
    """A fine-tune that may be changed."""
    return Path(shutil.copytree(llamas["math"], tmp_path / "expert"))


@pytest.fixture
def mean(llamas: Mapping[str, str], expert: Path, recipe: Spell) -> Recipe:
    return recipe("linear", None, [llamas["base"], str(expert)], weight=0.5)


def rewrite(expert: Path) -> None:
    """Write the weights as they are, with another date."""
    file = expert / "model.safetensors"
    before = file.stat().st_mtime_ns
    os.utime(file, ns=(before + 1, before + 1))


@pytest.fixture
def meddled(expert: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Change the expert whenever a tensor has been merged; return the error to expect."""
    merge = MergedTensor._on

    def meddling(tensor: MergedTensor, *args: Any) -> Any:
        merged = merge(tensor, *args)
        rewrite(expert)
        return merged

    monkeypatch.setattr(MergedTensor, "_on", meddling)
    return rf"{expert}/model.safetensors changed while it was read"


def test_loading_names_it(mean: Recipe, meddled: str) -> None:
    with pytest.raises(CheckpointError, match=meddled):
        load_merged(mean)


def test_overwriting_names_it(llamas: Mapping[str, str], mean: Recipe, meddled: str) -> None:
    live = AutoModelForCausalLM.from_pretrained(llamas["base"])
    with pytest.raises(CheckpointError, match=meddled):
        overwrite(live, mean)


def test_saving_names_it_and_leaves_nothing(mean: Recipe, meddled: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=meddled):
        save(mean, tmp_path / "saved" / "merge")
    assert not [*(tmp_path / "saved").iterdir()]


def test_mounting_names_it_and_leaves_nothing(
    mean: Recipe, expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identify = mounting.signature

    def meddling(recipe: Recipe) -> dict[str, Any]:
        rewrite(expert)
        return identify(recipe)

    monkeypatch.setattr(mounting, "signature", meddling)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        mount(mean, tmp_path / "mounted" / "merge")
    assert not [*(tmp_path / "mounted").iterdir()]


def test_a_mounted_merge_is_not_loaded_from_models_that_changed_since_it_was_identified(
    mean: Recipe,
    expert: Path,
    llamas: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = mount(mean, tmp_path / "merge")
    load = mounting.load_merged

    def meddling(*args: Any, **options: Any) -> Any:
        shutil.copy(Path(llamas["code"], "model.safetensors"), expert)
        return load(*args, **options)

    monkeypatch.setattr(mounting, "load_merged", meddling)
    with pytest.raises(MismatchError, match=rf"no longer the merge it was: {expert} changed"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_no_statistic_is_kept_of_a_model_that_changed(
    llamas: Mapping[str, str],
    expert: Path,
    recipe: Spell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text(json.dumps({"text": "1 2 3"}) + "\n")
    fisher = registry().statistics["fisher"]

    def meddling(*args: Any) -> Any:
        rewrite(expert)
        return fisher.function(*args)

    other = dataclasses.replace(fisher, function=meddling, version="of this test")
    monkeypatch.setitem(registry().statistics, "fisher", other)
    spelt = recipe("fisher_merging", None, [str(expert), llamas["base"]], data=str(data))
    kept = {*cache_folder().glob("statistics/*")}
    with pytest.raises(CheckpointError, match=rf"{expert}/model.safetensors changed while"):
        next(iter(merged_tensors(spelt).values()))[...]
    assert {*cache_folder().glob("statistics/*")} == kept


def test_check_verifies_what_is_known_of_files(
    mean: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MERGE_PLUGINS_CACHE", str(tmp_path / "cache"))
    file, true = tmp_path / "merge.yaml", identity.digest(mean)
    file.write_text(mean.to_yaml())
    for known in (tmp_path / "cache" / "content").iterdir():
        known.write_text("0" * 32)
    for options, is_true in ((), False), (("--verify",), True), ((), True):
        assert main(["check", str(file), *options]) == 0
        assert (f", digest {true}: " in capsys.readouterr().out) == is_true
