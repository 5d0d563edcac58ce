"""A file that changes after it was opened is named; none of its bytes is taken for a weight."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge_plugins import merged_tensors, shared_sources
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


def maps(file: Path) -> int:
    """Count the maps of a file in this process."""
    return Path("/proc/self/maps").read_text().count(str(file))


mapped = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="maps are counted in /proc"
)


@mapped
def test_merges_share_what_is_open_and_the_last_one_closes_it(file: Path, recipe: Recipes) -> None:
    spelt = recipe("linear", None, [str(file.parent)], weight=0.5)
    assert maps(file) == 0
    first = open_merge(spelt)
    n_maps = maps(file)
    assert n_maps > 0 or file.suffix == ".bin"
    others = [open_merge(spelt) for _ in range(3)]
    assert maps(file) == n_maps
    del first
    assert torch.equal(others[0].tensors()["w"][...], WEIGHTS["w"])
    del others
    gc.collect()
    assert maps(file) == 0


@mapped
def test_a_block_keeps_files_open_between_merges(file: Path, recipe: Recipes) -> None:
    spelt = recipe("linear", None, [str(file.parent)], weight=0.5)
    with shared_sources():
        first = next(iter(open_merge(spelt).plan.tensors.values())).stored[0]
        opened = weakref.ref(first.opened)  # type: ignore[attr-defined]
        del first
        gc.collect()
        assert opened() is not None
        again = next(iter(open_merge(spelt).plan.tensors.values())).stored[0]
        assert again.opened is opened()  # type: ignore[attr-defined]
        del again
    gc.collect()
    assert opened() is None


@pytest.mark.parametrize("change", [rewritten, replaced])
def test_a_changed_file_is_opened_anew_and_running_merges_say_so(
    change: Callable[[Path], object], tmp_path: Path, recipe: Recipes
) -> None:
    file = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    save_file(WEIGHTS, file)
    spelt = recipe("linear", None, [str(tmp_path)], weight=0.5)
    with shared_sources():
        running = open_merge(spelt)
        change(file)
        new = open_merge(spelt)
        new.plan.refuse_changes()
        with pytest.raises(CheckpointError, match=rf"{file} changed while it was read"):
            running.plan.refuse_changes()
        del running
        gc.collect()
        if sys.platform == "linux":
            assert maps(file) == 1, "what was there before the change is closed"


def test_threads_that_open_a_file_at_once_share_it(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(WEIGHTS, file)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read_header, [file] * 32))
    assert len({id(tensors["w"].opened) for tensors in found}) == 1
