"""Run where there is a GPU: the same merge, to the bit, on it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import write_zeros

from merge_plugins import Recipe, load_merged, merged_tensors, overwrite, shared_sources
from merge_plugins.api import Region, Slot
from merge_plugins.demo import family
from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError
from merge_plugins.hf import experts
from merge_plugins.ops.random import drop_at_random
from merge_plugins.outputs.lazy_tensor import LazyTensor
from merge_plugins.parallel import Place
from merge_plugins.weights import StoredTensor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def merge(method: str, **parameters: object) -> Recipe:
    models = family()
    experts = [str(path) for name, path in models.items() if name != "base"]
    if method == "slerp":
        experts = experts[:1]
    args = {"method": method, "base": str(models["base"]), "models": experts, **parameters}
    return Recipe.from_model_args(args)


@pytest.mark.parametrize("region", [((0, 300), (0, 70)), ((3, 200), (5, 64)), ((7, 8), (0, 70))])
def test_random_masks_have_the_same_bits_on_cpu_and_gpu(
    region: tuple[tuple[int, int], ...],
) -> None:
    box = Region((300, 70), region)
    kept = []
    for device in ("cpu", "cuda"):
        ones = torch.ones(box.sizes, device=device)
        slot = Slot("w", ones, (ones,), region=box, seed=3)
        kept.append(drop_at_random(ones.clone(), slot, 0, 0.3).cpu())
    assert torch.equal(*kept)
    assert 0.2 < kept[0].mean() < 0.4


@pytest.mark.parametrize(
    "recipe",
    [
        merge("average_merging"),
        merge("ties", weights=1, density=0.5),
        merge("dare_ties", weights=0.5, density=0.5),
        merge("slerp", t=0.4),
        merge("model_stock"),
    ],
    ids=lambda recipe: recipe.merge_method,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_loaded_onto_the_gpu_has_the_bits_of_one_on_the_cpu(
    recipe: Recipe, dtype: torch.dtype
) -> None:
    on_gpu = load_merged(recipe, device_map="cuda", dtype=dtype).state_dict()
    on_cpu = load_merged(recipe, dtype=dtype).state_dict()
    assert on_gpu.keys() == on_cpu.keys()
    for name, weight in on_gpu.items():
        assert weight.device.type == "cuda"
        assert torch.equal(weight.cpu(), on_cpu[name])


def test_each_weight_is_merged_where_the_device_map_puts_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = merge("ties", weights=1, density=0.5)
    whole = load_merged(recipe).state_dict()
    split = {"model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
    layers = {name.split(".")[2] for name in whole if name.startswith("model.layers.")}
    split |= {f"model.layers.{i}": "cpu" if i == "0" else 0 for i in layers}
    model = load_merged(recipe, device_map=split)
    at = {p.device.type for p in model.model.layers[1].parameters()}
    assert at == {"cuda"}
    offloaded = model.model.layers[0].mlp.up_proj._hf_hook.weights_map
    assert torch.equal(offloaded["weight"], whole["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(model.model.norm.weight.cpu(), whole["model.norm.weight"])
    assert "on the CPU" not in caplog.text


def test_what_vllm_copies_into_its_parameters_is_merged_on_their_device() -> None:
    tensors = merged_tensors(merge("slerp", t=0.4))
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    lazy, expected = LazyTensor(tensors[name]), tensors[name][...]
    for view, part in ((lazy, expected), (lazy[3:9], expected[3:9]), (lazy.T, expected.T)):
        parameter = torch.empty(view.shape, dtype=torch.float32, device="cuda")
        parameter.copy_(view)
        assert torch.equal(parameter.cpu(), part.float())


def test_a_live_model_on_the_gpu_is_overwritten_there() -> None:
    given = {"weights": 1, "density": 0.5}
    live = load_merged(merge("average_merging"), dtype=torch.bfloat16, device_map="cuda")
    homes = [weight.data_ptr() for weight in live.parameters()]
    with shared_sources():
        for scale in (1.0, 0.5):
            recipe = merge("ties", **given, **{"lambda": scale})
            assert overwrite(live, recipe) is live
            wanted = load_merged(recipe, dtype=torch.bfloat16).state_dict()
            for name, weight in live.state_dict().items():
                assert torch.equal(weight.cpu(), wanted[name]), name
    assert homes == [weight.data_ptr() for weight in live.parameters()]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Elements of every read of a stored weight by a carrier."""
    sizes: list[int] = []
    into = StoredTensor.read_into

    def noting(self: StoredTensor, target: torch.Tensor, region: Region) -> None:
        sizes.append(region.numel)
        into(self, target, region)

    monkeypatch.setattr(StoredTensor, "read_into", noting)
    return sizes


@pytest.mark.parametrize("method", ["linear", "ties", "ties_merging", "passthrough", "tsv"])
def test_sources_that_stay_on_the_gpu_cross_the_bus_once(method: str, read: list[int]) -> None:
    given: dict[str, dict[str, object]] = {
        "linear": {"weights": 0.5},
        "ties": {"weights": 0.5, "density": 0.5},
        "ties_merging": {"trim_scope": "model"},
    }
    alone = Recipe.from_model_args({"method": "passthrough", "models": [str(family()["base"])]})
    recipe = alone if method == "passthrough" else merge(method, **given.get(method, {}))
    wanted = load_merged(recipe).state_dict()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with shared_sources(resident="cuda"):
        live = load_merged(recipe, device_map="cuda")
        assert read
        read.clear()
        assert overwrite(live, recipe) is live
        assert not read
        found = live.state_dict()
        assert all(torch.equal(weight.cpu(), wanted[name]) for name, weight in found.items())
        for weight in found.values():
            weight.fill_(7.0)  # nothing is the memory of a source
        again = load_merged(recipe, device_map="cuda").state_dict()
        assert all(torch.equal(weight.cpu(), wanted[name]) for name, weight in again.items())
        assert not read
    del live, found, again
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


def test_computed_sources_are_measured_and_kept_there(
    checkpoint: Callable[..., str], recipe: Callable[..., Recipe], read: list[int]
) -> None:
    models = [checkpoint({"w": torch.randn(700, 900).bfloat16()}) for _ in range(3)]
    delta = {"model": models[1], "delta": models[2]}
    device = torch.empty(0, device="cuda").device
    given = {"weight": 0.5, "density": 0.4}
    top = {"merge_method": "ties", "base_model": models[0], "models": [{"model": delta}]}
    spelled = Recipe.from_mapping({**top, "parameters": given})
    expected = open_merge(spelled).tensors()["w"][...]
    for room in (0, 1 << 30):
        for resident in (None, "cuda"):
            with shared_sources(resident=resident):
                for _ in range(2):
                    found = open_merge(spelled)
                    found.places[device] = Place(device, 1 << 17, by_threads=False, room=room)
                    assert torch.equal(found.tensors()["w"].on(device).cpu(), expected)
                    assert torch.equal(found.tensors()["w"][...], expected)


def test_more_than_the_gpu_has_is_refused(
    tmp_path: Path, recipe: Callable[..., Recipe], read: list[int]
) -> None:
    n_rows = int(0.3 * torch.cuda.mem_get_info()[1]) >> 12
    folders = [tmp_path / name for name in "abcd"]  # four: the CPU too may have less memory
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        write_zeros(folder, {"w": (n_rows, 2048)})
    spelled = recipe("linear", None, list(map(str, folders)), weight=0.5)
    refused = pytest.raises(MergeError, match=r"GB of sources in memory, and cuda:0 has .* free")
    with shared_sources(resident="cuda:0"), refused:
        open_merge(spelled)
    assert not read


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("method", ["ties", "slerp", "ties_merging"])
def test_two_gpus_each_make_their_own(method: str, caplog: pytest.LogCaptureFixture) -> None:
    given: dict[str, dict[str, object]] = {
        "ties": {"weights": 1, "density": 0.5},
        "slerp": {"t": 0.4},
        "ties_merging": {"trim_scope": "model"},
    }
    recipe = merge(method, **given[method])
    wanted = load_merged(recipe).state_dict()
    layers = {name.split(".")[2] for name in wanted if name.startswith("model.layers.")}
    split = {"model.embed_tokens": 0, "lm_head": 0, "model.norm": 1, "model.rotary_emb": 0}
    split |= {f"model.layers.{i}": int(i) % 2 for i in layers}
    with shared_sources(resident="cuda:0"), shared_sources(resident="cuda:1"):
        live = load_merged(recipe, device_map=split)
        for _ in range(2):
            found = live.state_dict()
            assert {weight.device.index for weight in found.values()} == {0, 1}
            assert all(torch.equal(weight.cpu(), wanted[name]) for name, weight in found.items())
            live = overwrite(live, recipe)
    for name, tensor in merged_tensors(recipe).items():
        for device in ("cuda:1", "cuda:0"):
            merged = tensor.on(torch.device(device))
            assert merged.device == torch.device(device)
            assert torch.equal(merged.cpu(), tensor[...]), name
    assert "on the CPU" not in caplog.text


def test_a_nearly_full_gpu_takes_smaller_blocks(
    checkpoint: Callable[..., str], recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    models = [checkpoint({"w": torch.randn(4096, 4096).bfloat16()}) for _ in range(5)]
    found = open_merge(recipe("ties", models[0], models[1:], weight=1, density=0.5))
    device = torch.empty(0, device="cuda").device
    found.places[device] = Place(device, 1 << 24, by_threads=False, room=1 << 28)
    tensor = found.tensors()["w"]
    expected, n_bytes = tensor[...], torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + (120 << 20)  # less than five models of 32 MiB
    torch.cuda.set_per_process_memory_fraction(limit / n_bytes)
    try:
        merged = tensor.on(device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(merged.cpu(), expected)
    assert torch.cuda.memory_stats()["num_ooms"] > 0
    assert "on the CPU" not in caplog.text


@pytest.mark.parametrize("method", ["fisher_merging", "regmean_merging"])
def test_what_is_calibrated_on_the_gpu_is_what_is_calibrated_on_the_cpu(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one plus two"}\n{"text": "three"}\n')
    models = [str(path) for name, path in family().items() if name != "base"]
    given = {"method": method, "models": models, "data": str(tmp_path / "texts.jsonl")}
    found = []
    for room in (experts.ROOM, 1e12):
        monkeypatch.setattr(experts, "ROOM", room)
        monkeypatch.setenv("MERGE_PLUGINS_CACHE", str(tmp_path / f"{room}"))
        merged = merged_tensors(Recipe.from_model_args(given))
        found.append({name: tensor[...].float() for name, tensor in merged.items()})
    for name, weight in found[0].items():
        off = (weight - found[1][name]).norm() / weight.norm()
        assert off < 1e-2, (name, float(off))
