"""Files beside the weights: copied from the model's own folder, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.companions import copy_files

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


def test_the_hubs_cache_is_links_to_blobs_of_the_same_model(tmp_path: Path) -> None:
    mine, other = (tmp_path / name for name in ("models--a--b", "models--c--d"))
    snapshot = mine / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for repo in (mine, other):
        (repo / "blobs").mkdir(parents=True)
        (repo / "blobs" / "hash").write_text("text")
    (snapshot / "a.txt").symlink_to("../../blobs/hash")
    copy_files(snapshot, ["a.txt"], tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "text"
    (snapshot / "b.txt").symlink_to(other / "blobs" / "hash")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        copy_files(snapshot, ["b.txt"], tmp_path / "out")


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
