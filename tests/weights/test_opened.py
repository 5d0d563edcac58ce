"""A file that changes after it was opened is named; none of its bytes is taken for a weight."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge_plugins import merged_tensors
from merge_plugins.api import Region
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError
from merge_plugins.recipe import Recipe
from merge_plugins.weights import open_checkpoint
from merge_plugins.weights.headers import read_header

WEIGHTS = {"w": torch.arange(6000.0).view(60, 100), "v": torch.ones(7)}
Recipes = Callable[..., Recipe]


def rewritten(file: Path) -> None:
    """Write the same bytes again, a moment later."""
    before = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(before + 1, before + 1))


def replaced(file: Path) -> None:
    shutil.copy2(file, file.with_name("other"))
    file.with_name("other").replace(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written to": rewritten,
    "replaced by a copy of the same date": replaced,
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"more"),
    "cut off": lambda file: os.truncate(file, 100),
    "removed": lambda file: file.unlink(),
}
WRITERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda file: save_file(WEIGHTS, file),
    "pytorch_model.bin": lambda file: torch.save(WEIGHTS, file),
    "an old pytorch_model.bin": lambda file: torch.save(
        WEIGHTS, file, _use_new_zipfile_serialization=False
    ),
}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The weight file of a model, in every format."""
    (tmp_path / "config.json").write_text("{}")
    found = tmp_path / request.param.rpartition(" ")[2]
    WRITERS[request.param](found)
    return found


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_is_noticed(
    change: Callable[[Path], object], file: Path, recipe: Recipes
) -> None:
    plan = open_merge(recipe("linear", None, [str(file.parent)], weight=1.0)).plan
    plan.refuse_changes()
    change(file)
    with pytest.raises(CheckpointError, match=rf"{file} changed while it was read"):
        plan.refuse_changes()


def test_a_file_that_was_cut_off_is_named_before_it_is_read(file: Path, recipe: Recipes) -> None:
    whole = merged_tensors(recipe("linear", None, [str(file.parent)], weight=0.5))
    copied = merged_tensors(recipe("passthrough", None, [str(file.parent)]))
    stored = open_checkpoint(str(file.parent))["w"]
    assert torch.equal(whole["w"][...], WEIGHTS["w"])
    os.truncate(file, 4096)  # reading what is mapped beyond would be the end of this process
    region = Region(stored.shape, ((50, 60), (0, 100)))
    reads = {
        "merged": lambda: whole["w"][...],
        "copied": lambda: copied["w"][...],
        "region": lambda: stored.read(region),
        "copy on write": stored.private,
    }
    for name, read in reads.items():
        with pytest.raises(CheckpointError, match=rf"{file} changed while it was read"):
            pytest.fail(f"{name}: {read()}")


def test_a_copy_is_never_of_another_file_at_the_same_path(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(5000)}, file)
    stored = read_header(file)["w"]
    save_file({"w": torch.ones(5000)}, tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").replace(file)
    assert torch.equal(stored.view(), torch.zeros(5000)), "the file that was opened"
    with pytest.raises(CheckpointError, match="changed while it was read"):
        stored.private()


def test_the_tensors_of_a_file_share_what_was_opened(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    first, second = read_header(tmp_path / "a.safetensors").values()
    assert first.opened is second.opened
