"""Folders and files appear whole or not at all, and what killed runs left goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from merge_plugins import MergeError, Recipe, save
from merge_plugins.calibration import store
from merge_plugins.folders import complete_or_nothing, write_whole

resource = pytest.importorskip("resource", reason="locks and limits are POSIX")

HOLD = """
import sys, time
from pathlib import Path
from merge_plugins.folders import complete_or_nothing
with complete_or_nothing(Path(sys.argv[1])) as unfinished:
    (unfinished / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing a folder beside ours."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "other")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def write(folder: Path) -> None:
    with complete_or_nothing(folder) as unfinished:
        (unfinished / "file").write_text("text")


def test_what_a_living_run_writes_is_left_alone_until_it_is_killed(
    writing: subprocess.Popen[str], tmp_path: Path
) -> None:
    write(tmp_path / "first")
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".other.")]) == 2
    writing.kill()
    writing.wait()
    write_whole(tmp_path / "second", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    others = [".other.0123abcd", ".gitignore", ".x.unfinished", ".x.0123abcd.unfinishedd"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "precious").mkdir()
    (tmp_path / ".y.0123abcd.unfinished").symlink_to("precious")
    (tmp_path / ".z.0123abcd.unfinished").touch()
    (tmp_path / ".z.0123abcd.unfinishedd").symlink_to("precious")
    os.mkfifo(tmp_path / ".p.0123abcd.unfinished")
    (tmp_path / "precious" / "file").touch()
    write(tmp_path / "out")
    assert {*others, "precious", "out"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "precious" / "file").exists()


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond some bytes, as on a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_a_statistic_is_written_is_named(
    full_disk: Callable[[int], None], tmp_path: Path
) -> None:
    pieces = [{"a": torch.zeros(10)}, {"b": torch.zeros(100_000)}]
    full_disk(100_000)
    with pytest.raises(MergeError, match=r"s was not written: .*/s/00001\.safetensors: .*I/O err"):
        store.write(tmp_path / "s", pieces)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_a_merge_is_written_is_named(
    full_disk: Callable[[int], None], checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    model = checkpoint({"w": torch.ones(50_000)}, model_type="bare")
    recipe = Recipe.from_mapping({"merge_method": "passthrough", "models": [model]})
    full_disk(100_000)
    with pytest.raises(MergeError, match=r"out was not written: .*/out/model\.safetensors'"):
        save(recipe, tmp_path / "out")
    assert not list(tmp_path.iterdir())
