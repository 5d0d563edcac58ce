"""Run where there is a GPU: the same merge, to the bit, on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merge_plugins import Recipe, load_merged, merged_tensors
from merge_plugins.api import Region, Slot
from merge_plugins.demo import family
from merge_plugins.ops.random import drop_at_random

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


@pytest.mark.parametrize("method", ["fisher_merging", "regmean_merging"])
def test_what_is_calibrated_on_the_gpu_is_what_is_calibrated_on_the_cpu(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one plus two"}\n{"text": "three"}\n')
    experts = [str(path) for name, path in family().items() if name != "base"]
    given = {"method": method, "models": experts, "data": str(tmp_path / "texts.jsonl")}
    found = []
    for room in (experts.ROOM, 1e12):
        monkeypatch.setattr(experts, "ROOM", room)
        monkeypatch.setenv("MERGE_PLUGINS_CACHE", str(tmp_path / f"{room}"))
        merged = merged_tensors(Recipe.from_model_args(given))
        found.append({name: tensor[...].float() for name, tensor in merged.items()})
    for name, weight in found[0].items():
        assert torch.allclose(weight, found[1][name], rtol=1e-3, atol=1e-4), name
