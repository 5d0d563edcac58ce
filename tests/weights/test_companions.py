"""Files beside the weights: copied from the model's own folder, and from nowhere else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.companions import copy_files, model_path

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "a.json").write_text("{}")
    return tmp_path / "model"


def test_files_and_links_within_the_folder_are_copied(model: Path, tmp_path: Path) -> None:
    (model / "b.json").symlink_to("sub/a.json")
    copy_files(model, ["sub/a.json", "b.json"], tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "a.json").read_text() == "{}"
    assert not (tmp_path / "out" / "b.json").is_symlink()


def test_links_into_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """As in its snapshots, and in the folders that older clients made of links."""
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    for folder in (blobs, snapshot, tmp_path / "downloaded", tmp_path / "blobs"):
        folder.mkdir(parents=True)
    (blobs / "hash").write_text("text")
    (snapshot / "a.txt").symlink_to("../../blobs/hash")
    (tmp_path / "downloaded" / "a.txt").symlink_to(blobs / "hash")
    for folder in (snapshot, tmp_path / "downloaded"):
        copy_files(folder, ["a.txt"], tmp_path / folder.name / "out")
        assert (tmp_path / folder.name / "out" / "a.txt").read_text() == "text"
    (tmp_path / "blobs" / "hash").write_text("secret")
    (snapshot / "b.txt").symlink_to(tmp_path / "blobs" / "hash")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        copy_files(snapshot, ["b.txt"], tmp_path / "out")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Another model's folder, with a file of each name that `model` may link to."""
    (tmp_path / "shared" / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        (tmp_path / "shared" / name).write_text('{"model_type": "llama"}')
    return tmp_path / "shared"


def test_a_folder_of_links_to_the_files_of_another_model_is_a_model(
    model: Path, shared: Path, tmp_path: Path
) -> None:
    (model / "tokenizer.json").symlink_to(shared / "tokenizer.json")
    (model / "1_Pooling").symlink_to(shared / "1_Pooling")
    (shared / "1_Pooling" / "config.json").write_text("{}")
    copy_files(model, ["tokenizer.json", "1_Pooling/config.json"], tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"model_type": "llama"}'
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"


def test_a_file_of_another_name_or_beside_no_model_is_not_followed(
    model: Path, shared: Path, tmp_path: Path
) -> None:
    (shared / "key").write_text("secret")
    (model / "merges.txt").symlink_to(shared / "key")
    (model / "tokenizer.json").symlink_to(shared / "tokenizer.json")
    (shared / "config.json").write_text('{"credHelpers": {}}')
    for name in ("merges.txt", "tokenizer.json"):
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            copy_files(model, [name], tmp_path / "out")


def test_the_error_says_what_to_type(model: Path, tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    (tmp_path / "my files" / "a.txt").write_text("a")
    for name, to in (("vocab.txt", "../my files/a.txt"), ("1_Pooling", "../my files")):
        (model / name).symlink_to(to)
        with pytest.raises(CheckpointError) as caught:
            model_path(model, name)
        subprocess.run(str(caught.value).rpartition("place: ")[2], shell=True, check=True)
    copy_files(model, ["vocab.txt", "1_Pooling/a.txt"], tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text() == "a"
    assert (tmp_path / "my files" / "a.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("../secret", "leads out of its folder, to .*secret"),
        ("/etc/passwd", "leads out of its folder, to /etc/passwd"),
        ("/dev/zero", "leads out of its folder"),
        ("nowhere", "leads nowhere"),
        ("a.txt", "leads nowhere"),
        ("sub", "is no regular file"),
    ],
)
def test_a_link_to_anything_else_is_an_error(
    to: str, said: str, model: Path, tmp_path: Path
) -> None:
    (model / "a.txt").symlink_to(to)
    with pytest.raises(CheckpointError, match=said):
        copy_files(model, ["a.txt"], tmp_path / "out")
    assert not (tmp_path / "out" / "a.txt").exists()


def test_a_pipe_is_an_error_and_nobody_waits_for_it(model: Path, tmp_path: Path) -> None:
    os.mkfifo(model / "a.txt")
    with pytest.raises(CheckpointError, match="is no regular file"):
        copy_files(model, ["a.txt"], tmp_path / "out")


def test_size_is_bounded_for_each_file_and_for_all(model: Path, tmp_path: Path) -> None:
    for number in range(5):
        with (model / f"{number}.txt").open("wb") as file:
            file.truncate(257 * 2**20)
    with pytest.raises(CheckpointError, match=r"257 MiB.* up to 256 MiB each and 1024 MiB in all"):
        copy_files(model, ["0.txt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_files_are_bounded_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merge_plugins.weights.companions.TOGETHER", 3)
    with pytest.raises(CheckpointError, match="in all"):
        copy_files(model, ["sub/a.json", "sub/a.json"], tmp_path / "out")
