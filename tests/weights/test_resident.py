"""Sources that stay in memory are read once, merge to the same bits, and go with their block."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from families import write_zeros
from private_memory import STATUS, for_program
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_plugins import Recipe, load_merged, overwrite, shared_sources
from merge_plugins.api import Region
from merge_plugins.engine import Merge, open_merge
from merge_plugins.engine.carrier import Carrier
from merge_plugins.errors import CheckpointError, MergeError, RecipeError
from merge_plugins.parallel import Place
from merge_plugins.weights import ComputedTensor, held, open_checkpoint, resident, signature
from merge_plugins.weights.opened import OpenedFile

CPU = torch.device("cpu")
SHAPES = {"w": (30, 40), "v": (50,), "unaligned": (7,)}
N_BYTES = 4 * sum(torch.Size(shape).numel() for shape in SHAPES.values())
Write = Callable[..., str]
Spell = Callable[..., Recipe]


@pytest.fixture
def models(checkpoint: Write) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [
        checkpoint({n: torch.randn(s, generator=generator) for n, s in SHAPES.items()})
        for _ in range(3)
    ]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every read of a file."""
    sizes: list[int] = []
    into = OpenedFile.read_into

    def noting(self: OpenedFile, target: memoryview, offset: int) -> None:
        sizes.append(len(target))
        into(self, target, offset)

    monkeypatch.setattr(OpenedFile, "read_into", noting)
    return sizes


def all_of(merge: Merge, room: int | None = None) -> dict[str, Tensor]:
    """Merge all; ``room``: by the way of another device, with so much room."""
    if room is not None:
        merge.places[CPU] = Place(CPU, 500, by_threads=False, room=room)
    return {name: tensor[...] for name, tensor in merge.tensors().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("room", [None, 0, 1 << 20])
@pytest.mark.parametrize("method", ["linear", "ties", "passthrough", "widen_merging"])
def test_each_weight_is_read_once_for_all_merges(
    method: str, room: int | None, models: Sequence[str], read: list[int], recipe: Spell
) -> None:
    given: dict[str, Any] = {"linear": {"weight": 0.5}, "ties": {"weight": 0.5, "density": 0.5}}
    experts = models[1:2] if method == "passthrough" else models[1:]
    base = models[0] if method in ("ties", "widen_merging") else None
    spelled = recipe(method, base, experts, **given.get(method, {}))
    expected = all_of(open_merge(spelled))
    read.clear()
    with shared_sources(resident="cpu"):
        assert same(expected, all_of(open_merge(spelled), room))
        assert sum(read) == N_BYTES * (len(experts) + bool(base))
        for _ in range(2):
            assert same(expected, all_of(open_merge(spelled), room))
        assert sum(read) == N_BYTES * (len(experts) + bool(base))
    read.clear()
    assert same(expected, all_of(open_merge(spelled), 0))
    assert read, "the memory went with the block"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_what_is_merged_or_copied_is_memory_of_its_own(
    suffix: str, models: Sequence[str], recipe: Spell, tmp_path: Path
) -> None:
    weights = load_file(Path(models[0], "model.safetensors"))
    if suffix == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text("{}")
    spelled = recipe("passthrough", None, [str(tmp_path) if suffix == "bin" else models[0]])
    with shared_sources(resident="cpu"):
        for _ in range(2):
            found = all_of(open_merge(spelled))
            assert same(weights, found)
            for tensor in found.values():
                tensor.fill_(7.0)


def test_a_file_that_changes_is_told_and_read_anew(models: Sequence[str], recipe: Spell) -> None:
    spelled = recipe("linear", None, models[:1], weight=1.0)
    file = Path(models[0], "model.safetensors")
    with shared_sources(resident="cpu"):
        merge = open_merge(spelled)
        before = all_of(merge)
        changed = {name: weight + 1 for name, weight in before.items()}
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=rf"{file} changed while it was read"):
            merge.plan.refuse_changes()
        assert same(all_of(open_merge(spelled)), changed)
        cut = open_merge(spelled)
        os.truncate(file, 100)
        with pytest.raises(CheckpointError, match=rf"{file} changed while it was read"):
            all_of(cut)


def test_too_little_memory_is_refused_before_a_weight_is_read(
    tmp_path: Path, recipe: Spell, read: list[int]
) -> None:
    n_rows = int(0.7 * psutil.virtual_memory().total) >> 12
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        write_zeros(folder, {"w": (n_rows, 2048)})  # take no room on disk
    spelled = recipe("linear", None, list(map(str, folders)), weight=0.5)
    size = f"{2 * n_rows * 4096 / 1e9:.2f} GB"
    with (
        shared_sources(resident="cpu"),
        pytest.raises(MergeError, match=rf"keep {size} of sources in memory, and cpu has .* GB fr"),
    ):
        open_merge(spelled)
    with shared_sources():
        open_merge(spelled)
    assert not read


def test_what_it_keeps_is_said_once(
    models: Sequence[str], recipe: Spell, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), shared_sources(resident="cpu"):
        for weight in (0.5, 0.6):
            all_of(open_merge(recipe("linear", None, models[:2], weight=weight)))
        open_merge(recipe("linear", None, models, weight=0.5))
    first, second = (each for each in caplog.messages if each.startswith("keeps"))
    assert first.startswith("keeps 0.00 GB of sources on cpu, which has")
    assert second.startswith("keeps 0.00 GB")


def test_what_no_merge_needs_makes_room(
    models: Sequence[str], recipe: Spell, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(*numbers: int) -> int:
        read.clear()
        all_of(open_merge(recipe("linear", None, [models[i] for i in numbers], weight=0.5)))
        return sum(read) // N_BYTES

    with shared_sources(resident="cpu"):
        assert merge(0, 1) == 2
        monkeypatch.setattr(resident, "free_bytes", lambda device: N_BYTES // 2)
        with pytest.raises(MergeError, match="merge fewer or smaller models"):
            merge(1, 2)
        monkeypatch.setattr(resident, "free_bytes", lambda device: N_BYTES)
        assert merge(1, 2) == 1
        monkeypatch.setattr(resident, "free_bytes", lambda device: 2 * N_BYTES)
        assert merge(0, 1, 2) <= 2


def test_blocks_within_each_other_keep_one_copy(
    models: Sequence[str], recipe: Spell, read: list[int]
) -> None:
    spelled = recipe("linear", None, models[:1], weight=0.5)
    with shared_sources(resident="cpu"):
        with shared_sources(resident=CPU), shared_sources():
            all_of(open_merge(spelled))
        all_of(open_merge(spelled))
    assert sum(read) == N_BYTES
    assert not resident.residents()


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:77"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with (
        pytest.raises(RecipeError, match=rf"resident='{name}' is no device here .*name 'cpu'"),
        shared_sources(resident=name),
    ):
        pytest.fail("it is no device")
    assert not resident.residents()


def test_a_computed_weight_stays_where_it_was_brought(models: Sequence[str]) -> None:
    """As on a GPU: the CPU itself keeps what is stored, since it computes from that."""
    with shared_sources(), resident.keeping(CPU):
        stored = open_checkpoint(models[0])["w"]
        n_computed: list[int] = []

        def compute(region: Region) -> Tensor:
            n_computed.append(region.numel)
            return 2 * stored.read(region)

        doubled = ComputedTensor(
            "w", stored.file, stored.dtype, stored.shape, (stored,), compute, how="doubled"
        )
        found = resident.resident_on(CPU)
        assert found is not None
        found.expect({signature(doubled): 4 * 1200})
        carrier, boxes = Carrier(CPU), [((0, 30), (0, 40)), ((3, 9), (2, 30)), ((3, 9), (2, 30))]
        assert carrier.stays(doubled)
        assert not carrier.stays(stored)
        with held([doubled]), ThreadPoolExecutor(4) as threads:
            regions = [Region(stored.shape, box) for box in boxes * 4]
            brought = list(threads.map(lambda r: carrier.bring([doubled], r)[0], regions))
        assert sum(n_computed) == 1200
        assert len({tensor.untyped_storage().data_ptr() for tensor in brought}) == 1
        for region, tensor in zip(regions, brought, strict=True):
            assert torch.equal(tensor, 2 * region.of(stored.view()))


def test_an_error_while_a_weight_is_read_is_no_weight(models: Sequence[str]) -> None:
    with resident.keeping(CPU):
        found = resident.resident_on(CPU)
        assert found is not None
        found.expect({"key": 4})

        def fail() -> Tensor:
            raise OSError("the network is gone")

        with pytest.raises(OSError, match="the network is gone"):
            found.keep("key", fail)
        assert found.find("key") is None
        assert torch.equal(found.keep("key", lambda: torch.ones(1)), torch.ones(1))


def test_a_live_model_is_overwritten_from_memory(
    llamas: dict[str, str], recipe: Spell, read: list[int]
) -> None:
    def spell(scale: float) -> Recipe:
        experts = [llamas["math"], llamas["code"]]
        return recipe("ties", llamas["base"], experts, weight=0.5, density=0.5, **{"lambda": scale})

    with shared_sources(resident="cpu"):
        live = load_merged(spell(1.0))
        n_read = sum(read)
        assert overwrite(live, spell(0.5)) is live
        assert sum(read) == n_read
    wanted = load_merged(spell(0.5)).state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in live.state_dict().items())


MEASURE = """
import json, sys
from private_memory import peak_of, private
from merge_plugins import Recipe, merged_tensors, shared_sources

recipe = Recipe.from_mapping(json.loads(sys.argv[1]))
def merge():
    for tensor in merged_tensors(recipe).values():
        tensor[...]
merge()
before = private()
with shared_sources(resident="cpu"):
    merge()
    inside = private()
    merge()
    again = private()
print(json.dumps([inside - before, again - before, private() - before]))
"""


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_the_memory_is_that_of_the_sources_until_the_end_of_the_block(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        write_zeros(folder, {f"w{i}": (1000, 2048) for i in range(20)})
    spelled = {"merge_method": "linear", "models": list(map(str, folders))}
    command = [sys.executable, "-c", MEASURE, json.dumps({**spelled, "parameters": {"weight": 1}})]
    said = subprocess.check_output(command, text=True, timeout=300, env=for_program())
    inside, again, after = json.loads(said)
    size = 2 * 20 * 2048 * 1000 * 2
    assert 0.95 * size < inside < 1.2 * size
    assert again < 1.2 * size
    assert after < 0.2 * size
