"""A saved merge is an ordinary checkpoint, whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge_plugins import MergeError, Recipe, identity, merged_tensors, save
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, RecipeError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Write = Callable[..., str]
Spell = Callable[..., Recipe]


def header(file: Path) -> tuple[int, dict[str, Any]]:
    """Length and content of a safetensors header."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return length, json.loads(raw[8 : 8 + length])


def test_the_folder_is_a_whole_checkpoint(winner: Recipe, tmp_path: Path) -> None:
    folder = save(winner, tmp_path / "new" / "winner")
    assert folder == tmp_path / "new" / "winner"
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "merge.yaml",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [entry.name for entry in folder.parent.iterdir()] == ["winner"]
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert model.generation_config.eos_token_id == [2, 3]
    assert AutoTokenizer.from_pretrained(folder)("5 7")["input_ids"]


def test_safetensors_reads_what_we_write(winner: Recipe, tmp_path: Path) -> None:
    folder = save(winner, tmp_path / "winner")
    expected = merged_tensors(winner)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == expected.keys()
    found = load_file(folder / "model.safetensors")
    for name, weight in found.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, expected[name][...])


def test_every_tensor_starts_where_its_dtype_is_aligned(checkpoint: Write, recipe: Spell) -> None:
    weights = {
        "a": torch.ones(3, dtype=torch.float16),
        "flag": torch.tensor([True]),
        "ids": torch.arange(3),
        "steps": torch.tensor(5, dtype=torch.int32),
        "w": torch.ones(5),
        "z": torch.zeros(0, 4),
    }
    folder = checkpoint(weights, model_type="bare")
    saved = save(recipe("passthrough", None, [folder]), Path(folder).with_name("aligned"))
    length, entries = header(saved / "model.safetensors")
    entries.pop("__metadata__")
    assert length % 8 == 0
    ends = 0
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        assert start == ends
        assert start % weights[name].dtype.itemsize == 0
        ends = stop
    found = load_file(saved / "model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_a_large_merge_is_sharded_with_an_index(winner: Recipe, tmp_path: Path) -> None:
    whole = load_file(save(winner, tmp_path / "whole") / "model.safetensors")
    folder = save(winner, tmp_path / "sharded", max_shard_size=10_000)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert not (folder / "model.safetensors").exists()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == whole.keys()
    assert index["metadata"]["total_size"] == sum(2 * weight.numel() for weight in whole.values())
    for file in files:
        for name, weight in load_file(file).items():
            assert index["weight_map"][name] == file.name
            assert torch.equal(weight, whole[name])
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_the_config_says_the_dtype_in_both_spellings(
    key: str, llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    spelled = recipe("average_merging", None, [llamas["math"], llamas["code"]], **{key: "float32"})
    config = json.loads((save(spelled, tmp_path / "m") / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").dtype == torch.float32


def test_the_recipe_in_the_folder_makes_the_same_merge(winner: Recipe, tmp_path: Path) -> None:
    folder = save(winner, tmp_path / "winner")
    again = Recipe.load(folder)
    assert again == winner
    assert identity.digest(again) == identity.digest(winner)
    text = (folder / "merge.yaml").read_text()
    assert "/tmp" not in text  # relative: the folder and its models can move together
    twice = save(again, tmp_path / "again")
    assert (twice / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_models_and_recipe_can_move_together(
    llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    for name in ("base", "math"):
        shutil.copytree(llamas[name], first / name)
    spelled = recipe("task_arithmetic", str(first / "base"), [str(first / "math")])
    digest, _ = identity.digest(spelled), save(spelled, first / "merge")
    first.rename(tmp_path / "second")
    moved = Recipe.load(tmp_path / "second" / "merge")
    assert moved.base_model == str(tmp_path / "second" / "base")
    assert identity.digest(moved) == digest


def test_the_model_card_is_in_the_hubs_conventions(winner: Recipe, tmp_path: Path) -> None:
    folder = save(winner, tmp_path / "winner")
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["library_name"] == "transformers"
    assert told["base_model_relation"] == "merge"
    assert {"merge", "merge-plugins"} <= set(told["tags"])
    assert "base_model" not in told  # folders on this machine mean nothing to the hub
    assert text.startswith("\n# winner\n")
    assert "`ties` (Yadav et al. 2023" in text
    assert identity.digest(winner) in text
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown["parameters"]["density"] == 0.4
    assert shown["base_model"] == "base"
    assert [entry["model"] for entry in shown["models"]] == ["math", "code"]
    assert str(Path(winner.references[0]).parent) not in text


def test_the_model_card_links_models_of_the_hub(
    llamas: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("base", "math"):
        root = tmp_path / f"models--tiny--{name}"
        shutil.copytree(llamas[name], root / "snapshots" / COMMIT)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
    mapping = {
        "merge_method": "task_arithmetic",
        "base_model": "tiny/base",
        "models": [{"model": "tiny/math@main"}],
    }
    folder = save(Recipe.from_mapping(mapping), tmp_path / "merge")
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert front["base_model"] == ["tiny/base", "tiny/math"]
    assert yaml.safe_load((folder / "merge.yaml").read_text())["base_model"] == "tiny/base"


def test_the_tokenizer_is_the_donors(
    llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    chat = Path(shutil.copytree(llamas["math"], tmp_path / "chat"))
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    (chat / "modeling_own.py").write_text("")
    for source, has_template in ((None, False), ("base", False), (str(chat), True)):
        given = {} if source is None else {"tokenizer_source": source}
        spelled = recipe("task_arithmetic", llamas["base"], [str(chat)], **given)
        folder = save(spelled, tmp_path / f"merge-{source and Path(source).name}")
        assert (folder / "chat_template.jinja").exists() == has_template
        assert not (folder / "modeling_own.py").exists()  # code comes with the config's donor


def test_an_empty_folder_may_be_the_target(winner: Recipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (save(winner, tmp_path / "empty") / "model.safetensors").is_file()


def test_a_folder_that_is_not_empty_is_left_alone(winner: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for target, why in (
        (tmp_path, "exists and is not empty"),
        (tmp_path / "notes.txt", "is a file"),
    ):
        with pytest.raises(MergeError, match=f"{why}; name a new folder"):
            save(winner, target)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_noticed_before_merging(
    winner: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(1000, 999, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(MergeError, match=r"the merge needs .* GB, the disk has 0\.00 GB free"):
        save(winner, tmp_path / "winner")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(winner: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MergeError, match=r"winner was not written: .*file"):
        save(winner, tmp_path / "file" / "winner")


def test_a_recipe_that_cannot_be_merged_leaves_no_folder(
    llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    rules = [{"filter": "nothing", "value": 1.0}, {"value": 1.0}]
    spelled = recipe("task_arithmetic", llamas["base"], [llamas["math"]], weight=rules)
    with pytest.raises(RecipeError, match="is part of no tensor's name"):
        save(spelled, tmp_path / "deep" / "winner")
    assert not list(tmp_path.iterdir())


def test_a_damaged_source_leaves_no_folder(
    checkpoint: Write, recipe: Spell, tmp_path: Path
) -> None:
    bad = torch.ones(5)
    bad[3] = torch.nan
    folder = checkpoint({"a": torch.ones(9), "w": bad}, model_type="bare")
    with pytest.raises(CheckpointError, match=r"model.safetensors: w holds NaN or infinity.*\[3\]"):
        save(recipe("passthrough", None, [folder]), tmp_path / "winner")
    assert not list(tmp_path.iterdir())


INTERRUPTED = """
import signal
import sys
from merge_plugins import Recipe, save
from merge_plugins.methods.averages import Passthrough

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
whole = Passthrough.__call__
def slow(self, slot):
    import time
    print("merging", flush=True)
    time.sleep(0.2)
    return whole(self, slot)
Passthrough.__call__ = slow
model = {"model": sys.argv[1], "parameters": {"scale": 0.5}}
recipe = {"merge_method": "passthrough", "models": [model]}
save(Recipe.from_mapping(recipe), sys.argv[2])
"""


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is a signal elsewhere")
def test_ctrl_c_leaves_nothing_that_looks_whole(checkpoint: Write, tmp_path: Path) -> None:
    folder = checkpoint({str(i): torch.ones(10) for i in range(200)}, model_type="bare")
    command = [sys.executable, "-c", INTERRUPTED, folder, str(tmp_path / "winner")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "merging\n"
    assert any(tmp_path.iterdir())  # the unfinished folder, hidden beside the target
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in error
    assert not list(tmp_path.iterdir())


def test_saving_asks_for_exactly_the_planned_bytes(winner: Recipe, tmp_path: Path) -> None:
    found = open_merge(winner).plan
    folder = save(winner, tmp_path / "winner")
    length, _ = header(folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_size == 8 + length + found.bytes_merged
