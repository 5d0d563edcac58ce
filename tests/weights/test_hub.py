"""Where a model is, and what it is: its content, never its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from merge_plugins.errors import CheckpointError
from merge_plugins.identity import model_identity, tokenizer_identity
from merge_plugins.weights import content
from merge_plugins.weights.hub import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Write = Callable[..., str]


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
        blob = blobs / f"content-of-{file.name}"
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
    monkeypatch.setattr(content, "_hash", lambda *_: pytest.fail("read twice"))
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
    monkeypatch.setattr(content, "_hash", lambda *_: pytest.fail("read"))
    assert model_identity("tiny/llama@v1") == model_identity("tiny/llama")


def test_empty_files_have_an_identity(checkpoint: Write) -> None:
    folder = checkpoint({"w": torch.zeros(1)})
    Path(folder, "tokenizer.model").touch()
    assert len(tokenizer_identity(folder)) == 32
