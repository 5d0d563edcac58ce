"""Where a model is, and what it is: its content, never its name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from loopback_hub import hub_of

from merge_plugins.errors import CheckpointError
from merge_plugins.identity import digest, model_identity, tokenizer_identity, verify
from merge_plugins.recipe import Lora, Recipe
from merge_plugins.weights import content
from merge_plugins.weights.hub import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Write = Callable[..., str]
Recipes = Callable[..., Recipe]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cached(hub_cache: Path, folder: str, repo: str = "models--tiny--llama") -> Path:
    """Put a model into the hub's cache as huggingface_hub stores it: links to named content."""
    root = hub_cache / repo
    snapshot, blobs = root / "snapshots" / COMMIT, root / "blobs"
    for made in (snapshot, blobs, root / "refs"):
        made.mkdir(parents=True)
    for name in ("main", "v1"):
        (root / "refs" / name).write_text(COMMIT)
    for file in Path(folder).iterdir():
        raw = file.read_bytes()
        git = hashlib.sha1(b"blob %d\0%s" % (len(raw), raw)).hexdigest()
        is_large = file.suffix == ".safetensors"
        blob = blobs / (hashlib.sha256(raw).hexdigest() if is_large else git)
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def test_a_folder_is_where_it_is(checkpoint: Write) -> None:
    folder = checkpoint({"w": torch.zeros(1)})
    assert resolve(folder) == Path(folder)


@pytest.mark.parametrize("ref", ["/no/such/folder", "./no-such-folder", "../no/such"])
def test_a_path_that_does_not_exist_never_asks_the_hub(ref: str) -> None:
    with pytest.raises(CheckpointError, match=r"no model '.*': no such folder\. Check the path"):
        resolve(ref)


@pytest.mark.parametrize("ref", ["no-such/model", "no-such/model@v1", "gone", "not an id!/x"])
def test_a_model_that_is_nowhere_says_what_to_type(ref: str, hub_cache: Path) -> None:
    expected = r"no such folder here, and the hub gave none .* write org/name\[@revision\]"
    with pytest.raises(CheckpointError, match=expected) as caught:
        resolve(ref)
    assert repr(ref) in str(caught.value)


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_a_hub_id_is_found_in_the_cache(revision: str, hub_cache: Path, checkpoint: Write) -> None:
    snapshot = cached(hub_cache, checkpoint({"w": torch.zeros(1)}))
    assert resolve(f"tiny/llama{revision}") == snapshot


def test_the_folders_of_an_embedders_modules_are_downloaded_and_no_others(
    tmp_path: Path, checkpoint: Write
) -> None:
    model = tmp_path / "hub" / "tiny" / "embedder"
    shutil.copytree(checkpoint({"w": torch.zeros(1)}), model)
    files = {"1_Pooling/config.json", "2_[a]/model.safetensors", "2_[a]/sub/pytorch_model.bin"}
    for name in (*files, "2_a/config.json", "onnx/model.onnx", "onnx/config.json"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("{}")
    modules = [{"path": path} for path in ("", "1_Pooling", "2_[a]", "3_Normalize")]
    (model / "modules.json").write_text(json.dumps(modules))
    code = "from merge_plugins.weights.hub import resolve; print(resolve('tiny/embedder'))"
    with hub_of(tmp_path / "hub") as endpoint:
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": ""}
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **hub},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert not run.returncode, run.stderr
    found = Path(run.stdout.strip().splitlines()[-1])
    below = {str(file.relative_to(found)) for file in found.glob("*/**/*") if file.is_file()}
    assert below == files
    assert (found / "config.json").is_file()


def test_a_copy_elsewhere_is_the_same_model(checkpoint: Write) -> None:
    first, second = (checkpoint({"w": torch.arange(5.0)}, rope=1) for _ in range(2))
    assert model_identity(first) == model_identity(second)
    assert len(model_identity(first)) == 32


def test_one_bit_makes_another_model(checkpoint: Write) -> None:
    weights = torch.zeros(1 << 20)
    before = model_identity(checkpoint({"w": weights}))
    weights[777_777] = 1e-45
    assert model_identity(checkpoint({"w": weights})) != before


def test_a_file_changed_in_place_is_another_model(checkpoint: Write) -> None:
    folder = Path(checkpoint({"w": torch.zeros(9)}))
    before = model_identity(str(folder))
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + b"\x01")
    assert model_identity(str(folder)) != before
    file.write_bytes(raw)
    assert model_identity(str(folder)) == before


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_configuration_belongs_to_the_identity(name: str, checkpoint: Write) -> None:
    folder = checkpoint({"w": torch.zeros(1)})
    before = model_identity(folder)
    Path(folder, name).write_text(json.dumps({"rope_theta": 1e6}))
    assert model_identity(folder) != before


def test_what_a_readme_says_does_not(checkpoint: Write) -> None:
    folder = checkpoint({"w": torch.zeros(1)})
    before = model_identity(folder), tokenizer_identity(folder)
    Path(folder, "README.md").write_text("a model")
    assert (model_identity(folder), tokenizer_identity(folder)) == before


def test_a_tokenizer_has_an_identity_of_its_own(checkpoint: Write) -> None:
    folder = checkpoint({"w": torch.zeros(1)})
    before = model_identity(folder), tokenizer_identity(folder)
    Path(folder, "tokenizer.json").write_text("{}")
    assert model_identity(folder) == before[0]
    assert tokenizer_identity(folder) != before[1]


def test_a_file_is_read_once_and_remembered(
    checkpoint: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint({"w": torch.zeros(33)})
    before = model_identity(folder)
    monkeypatch.setattr(content, "_digest", lambda *_: pytest.fail("read twice"))
    assert model_identity(folder) == before


def test_nothing_is_remembered_where_nothing_can_be_written(
    checkpoint: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setattr(content, "_cache", lambda: tmp_path / "a file" / "content")
    folder = checkpoint({"w": torch.zeros(34)})
    assert model_identity(folder) == model_identity(folder)


def test_the_hubs_own_name_for_content_saves_reading_it(
    hub_cache: Path, checkpoint: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(hub_cache, checkpoint({"w": torch.zeros(35)}))
    monkeypatch.setattr(content, "_digest", lambda *_: pytest.fail("read"))
    assert model_identity("tiny/llama@v1") == model_identity("tiny/llama")


def test_a_file_is_not_what_its_name_says_outside_the_hubs_cache(
    hub_cache: Path, checkpoint: Write
) -> None:
    first, second = (checkpoint({"w": torch.full((3,), value)}) for value in (1.0, 2.0))
    snapshot = cached(hub_cache, first)
    name = (snapshot / "model.safetensors").resolve().name
    ways = {
        "a folder of that name": hub_cache / "blobs",
        "a link to a folder of that name": hub_cache / "models--a--b" / "blobs",
    }
    for folder in ways.values():
        folder.mkdir(parents=True)
        shutil.copyfile(Path(second, "model.safetensors"), folder / name)
        shutil.copyfile(Path(second, "config.json"), folder / "config.json")
    direct = ways["a folder of that name"]
    linked = hub_cache / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(hub_cache / "models--a--b" / "blobs" / name)
    shutil.copyfile(Path(second, "config.json"), linked / "config.json")
    (direct / name).rename(direct / "model.safetensors")
    assert model_identity(str(direct)) == model_identity(second)
    assert model_identity(str(linked)) == model_identity(second)


def test_files_of_the_hubs_cache_are_verified_by_their_names(
    hub_cache: Path, checkpoint: Write, recipe: Recipes
) -> None:
    snapshot = cached(hub_cache, checkpoint({"w": torch.zeros(3)}))
    spelt = recipe("linear", None, ["tiny/llama"], weight=1.0)
    verify(spelt)
    for name in ("model.safetensors", "config.json"):
        blob = (snapshot / name).resolve()
        whole = blob.read_bytes()
        blob.write_bytes(whole + b" ")
        before = digest(spelt)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged or was changed: .*{blob}"):
            verify(spelt)
        blob.write_bytes(whole)
        assert digest(spelt) == before, "the name alone counts, until it is verified"


def test_a_change_that_no_date_shows_is_found_by_verifying(
    checkpoint: Write, recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint({"w": torch.zeros(3)})
    file, spelt = Path(folder, "model.safetensors"), recipe("linear", None, [folder], weight=1.0)
    monkeypatch.setattr(content, "_remembered", lambda _: file.with_suffix(".hash"))
    before = digest(spelt)
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert digest(spelt) == before
    verify(spelt)
    assert digest(spelt) != before


def test_a_recipe_that_is_used_again_has_the_digest_of_its_models_as_they_are(
    checkpoint: Write, recipe: Recipes
) -> None:
    folder, other = (checkpoint({"w": torch.full((3,), value)}) for value in (1.0, 2.0))
    spelt = recipe("linear", None, [folder], weight=1.0)
    before = digest(spelt)
    shutil.copyfile(Path(other, "model.safetensors"), Path(folder, "model.safetensors"))
    assert digest(spelt) == digest(recipe("linear", None, [other], weight=1.0)) != before


def test_a_file_that_changes_while_it_is_hashed_is_named(
    checkpoint: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(checkpoint({"w": torch.zeros(1 << 20)}), "model.safetensors")

    class Meddling:
        def update(self, data: memoryview) -> None:
            os.truncate(file, 100)

        def hexdigest(self) -> str:
            return pytest.fail("of two versions")

    monkeypatch.setattr(content.xxhash, "xxh3_128", Meddling)
    with pytest.raises(CheckpointError, match=rf"{file} changed while it was read"):
        content.content(file)


def test_empty_files_have_an_identity(checkpoint: Write) -> None:
    folder = checkpoint({"w": torch.zeros(1)})
    Path(folder, "tokenizer.model").touch()
    assert len(tokenizer_identity(folder)) == 32


def embedder(folder: str) -> Path:
    """Make a model one of sentence-transformers, with a pooling and a projection."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normal"}
    for path in filter(None, kinds):
        Path(folder, path).mkdir()
    files = {
        "modules.json": [{"path": path, "type": f"own.{kind}"} for path, kind in kinds.items()],
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "2_Dense/config.json": {"in_features": 1, "out_features": 1},
        "sentence_bert_config.json": {"max_seq_length": 256},
        "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"},
        "tokenizer_config.json": {"model_max_length": 512},
    }
    for name, written in files.items():
        Path(folder, name).write_text(json.dumps(written))
    Path(folder, "2_Dense", "model.safetensors").write_bytes(b"weights")
    return Path(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("modules.json", "1_Pooling/config.json", "2_Dense/config.json"),
        *("2_Dense/model.safetensors", "sentence_bert_config.json"),
        *("config_sentence_transformers.json", "tokenizer_config.json"),
    ],
)
def test_whatever_changes_an_embedding_belongs_to_the_identity(
    name: str, checkpoint: Write, recipe: Recipes
) -> None:
    weights = {"w": torch.zeros(1)}
    folders = [embedder(checkpoint(weights)) for _ in range(2)]
    assert model_identity(str(folders[0])) == model_identity(str(folders[1]))
    before = model_identity(str(folders[0])), digest(recipe("linear", None, [*map(str, folders)]))
    (folders[0] / name).write_text((folders[0] / name).read_text().replace("e", "f"))
    if name == "modules.json":  # the same modules in another order
        listed = json.loads((folders[1] / name).read_text())
        (folders[0] / name).write_text(json.dumps([listed[0], *reversed(listed[1:])]))
    assert model_identity(str(folders[0])) != before[0]
    assert digest(recipe("linear", None, [*map(str, folders)])) != before[1]


def test_without_modules_only_the_transformer_is_the_model(checkpoint: Write) -> None:
    folder = checkpoint({"w": torch.zeros(1)})
    before = model_identity(folder)
    (embedder(folder) / "modules.json").unlink()
    assert model_identity(folder) == before


def test_a_file_below_is_not_the_file_of_that_name_above(checkpoint: Write) -> None:
    """Two modules that swap their configs are another model."""
    first, second = (embedder(checkpoint({"w": torch.zeros(1)})) for _ in range(2))
    texts = [(first / path / "config.json").read_text() for path in ("2_Dense", "1_Pooling")]
    for path, text in zip(("1_Pooling", "2_Dense"), texts, strict=True):
        (first / path / "config.json").write_text(text)
    assert model_identity(str(first)) != model_identity(str(second))


def test_an_adapter_trained_with_sentence_transformers_has_a_pooling_of_its_own(
    checkpoint: Write, tmp_path: Path
) -> None:
    model, adapter = checkpoint({"w": torch.zeros(1)}), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    before = model_identity(Lora(model, str(adapter)))
    embedder(str(adapter))
    pooled = model_identity(Lora(model, str(adapter)))
    (adapter / "1_Pooling" / "config.json").write_text("{}")
    assert len({before, pooled, model_identity(Lora(model, str(adapter)))}) == 3
