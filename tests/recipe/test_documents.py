"""Several documents in one file, files of tensors without a model, and files nobody can average."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_plugins import Recipe, identity, load_merged, merged_tensors, save
from merge_plugins.cli import main
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, MergeWarning, RecipeError

Write = Callable[..., str]


def model(value: float) -> dict[str, Tensor]:
    return {"model.layers.0.w": torch.full((2, 3), value), "lm_head.weight": torch.ones(4, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the models a, b and c: all ones, twos and threes."""
    for value, name in enumerate("abc", start=1):
        (tmp_path / name).mkdir()
        save_file(model(float(value)), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "bare"}')
    return tmp_path


def document(first: str, second: str, weight: float = 1.0, **more: Any) -> dict[str, Any]:
    models = [{"model": ref, "parameters": {"weight": weight}} for ref in (first, second)]
    return {"merge_method": "linear", "models": models, **more}


def write(folder: Path, *documents: dict[str, Any]) -> Path:
    file = folder / "merges.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return file


# mergekit-multi


def test_later_documents_use_earlier_ones_by_name_and_nothing_is_written(folder: Path) -> None:
    file = write(
        folder,
        document("a", "b", name="half"),
        document("half", "c", name="more"),
        document("more", "half"),
    )
    before = set(folder.rglob("*"))
    merged = merged_tensors(Recipe.load(file))["model.layers.0.w"][...]
    assert torch.allclose(merged, torch.full((2, 3), (2.25 + 1.5) / 2))
    assert set(folder.rglob("*")) == before


def test_documents_are_one_recipe_with_its_nested_spelling(folder: Path) -> None:
    inner = document(str(folder / "a"), str(folder / "b"))
    nested = Recipe.from_mapping(document(inner, str(folder / "c")))
    found = Recipe.load(write(folder, document("half", "c"), document("a", "b", name="half")))
    assert found == nested
    assert identity.digest(found) == identity.digest(nested)


def test_documents_of_two_files_may_share_a_name(folder: Path) -> None:
    inner = folder / "inner.yaml"
    inner.write_text(yaml.safe_dump_all([document("a", "b", name="step1"), document("step1", "c")]))
    file = write(folder, document("inner.yaml", "a", name="step1"), document("step1", "b"))
    step = document(str(folder / "a"), str(folder / "b"))
    nested = document(step, str(folder / "c"))
    whole = document(document(nested, str(folder / "a")), str(folder / "b"))
    assert Recipe.load(file) == Recipe.from_mapping(whole)


def test_a_loop_through_two_files_names_the_way(folder: Path) -> None:
    (folder / "inner.yaml").write_text(yaml.safe_dump(document("merges.yaml", "a")))
    file = write(folder, document("inner.yaml", "a", name="step1"), document("step1", "b"))
    way = rf"a model of itself: {file} → step1 → .*inner\.yaml → {file}$"
    with pytest.raises(RecipeError, match=way):
        Recipe.load(file)


def test_of_documents_that_all_have_names_the_last_is_merged(folder: Path) -> None:
    file = write(folder, document("a", "b", name="x"), document("x", "c", name="y"))
    assert str(Recipe.load(file).models[0].ref).startswith("linear(")
    alone = write(folder, document("a", "b", name="x"))
    assert Recipe.load(alone).references == (str(folder / "a"), str(folder / "b"))


def test_a_document_that_nobody_uses_is_told(folder: Path) -> None:
    file = write(folder, document("a", "b", name="x"), document("a", "c"))
    with pytest.warns(MergeWarning, match="document 'x' is not merged: no other uses it"):
        Recipe.load(file)


def test_documents_that_need_each_other_are_refused(folder: Path) -> None:
    file = write(folder, document("y", "a", name="x"), document("x", "b", name="y"))
    with pytest.raises(RecipeError, match=r"a recipe cannot be a model of itself: .* → x → y → x"):
        Recipe.load(file)


def test_the_commands_and_model_args_take_such_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(folder, document("half", "c"), document("a", "b", name="half"))
    assert main(["check", str(file)]) == 0
    assert main(["plan", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert shown["recipe"]["models"][0]["model"]["merge_method"] == "linear"
    args = {"config": str(file), "weights": "0+1"}
    merged = merged_tensors(Recipe.from_model_args(args))["model.layers.0.w"][...]
    assert torch.equal(merged, torch.full((2, 3), 3.0))
    assert main(["save", str(file), str(folder / "out")]) == 0
    saved = load_file(folder / "out/model.safetensors")["model.layers.0.w"]
    assert torch.allclose(saved, torch.full((2, 3), 2.25))


# Files of tensors


def test_state_dicts_merge_by_name_without_a_config(folder: Path) -> None:
    save_file({"net.0.w": torch.ones(3), "net.1.w": torch.ones(2)}, folder / "one.safetensors")
    torch.save({"net.0.w": torch.zeros(3), "net.1.w": torch.zeros(2)}, folder / "two.bin")
    held = document("one.safetensors", "two.bin")
    held["models"][0]["parameters"]["weight"] = [1.0, 9.0]  # no tensor is of any layer
    recipe = Recipe.from_mapping(held, folder)
    merged = {name: tensor[...] for name, tensor in merged_tensors(recipe).items()}
    assert torch.equal(merged["net.1.w"], torch.full((2,), 0.5))
    save(recipe, folder / "out")
    assert not (folder / "out/config.json").exists()
    saved = load_file(folder / "out/model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in merged.items())
    assert identity.digest(Recipe.load(folder / "out")) == identity.digest(recipe)
    with pytest.raises(RecipeError, match=r"a file of tensors without config.json.*save"):
        load_merged(recipe)


# What is no model


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"w": torch.ones(2)}, {"quantization_config": {"bits": 4}}, r"quantised \(quantization_c"),
        ({"l.qweight": torch.ones(2, dtype=torch.int32)}, {}, r"quantised \(l.qweight\)"),
        ({"l.weight_scale_inv": torch.ones(2)}, {}, r"quantised \(l.weight_scale_inv\)"),
        ({"l.weight.SCB": torch.ones(2)}, {}, "Name the full-precision model"),
        ({"l.lora_A.weight": torch.ones(2)}, {}, "is a LoRA adapter, it has l.lora_A.weight, not"),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_name(
    tensors: dict[str, Tensor], config: dict[str, Any], message: str, checkpoint: Write
) -> None:
    refs = [checkpoint(tensors, **config) for _ in range(2)]
    with pytest.raises(CheckpointError, match=message):
        open_merge(Recipe.from_mapping(document(*refs)))


def test_a_gguf_file_is_refused_before_it_is_read(folder: Path) -> None:
    (folder / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="a GGUF file"):
        open_merge(Recipe.from_mapping(document("x.gguf", "a"), folder))
