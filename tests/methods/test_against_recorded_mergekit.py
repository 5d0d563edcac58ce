"""A mergekit name gives mergekit's tensors.

The expected tensors were written by mergekit 0.1.5. A few of them are in tests/data, with the
recipes as mergekit spells them; all of them run where ../shared/fixtures is beside the checkout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_plugins import Recipe
from merge_plugins.engine import Merge, open_merge
from merge_plugins.methods.nearswap_arcee import POSITIVE, ArceeFusion
from merge_plugins.planning import PlannedTensor
from merge_plugins.plugins import registry

DATA = Path(__file__).parents[1] / "data"
RECIPES = json.loads((DATA / "mergekit-recipes.json").read_text())
MODELS = ("base", "ft_a", "ft_b", "ft_c")
IN_FLOAT32 = ("arcee_fusion", "ramplus_tl")
"""Methods whose bfloat16 merges mergekit writes in float32, under a config that says bfloat16."""
UNITS = {"sce": 4}
"""Units in the last place, of bfloat16, where one is not enough. SCE: which of the equal variances
at the cut are kept is open, and so is then the last bit of the models' weights."""


@pytest.fixture(scope="session")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of tests/data, a folder for each."""
    root = tmp_path_factory.mktemp("mergekit")
    for family in RECIPES:
        for model in MODELS:
            folder = root / family / model
            folder.mkdir(parents=True)
            save_file(in_data(family, model), folder / "model.safetensors")
            (folder / "config.json").write_text('{"num_hidden_layers": 4}')
    return root


def in_data(family: str, group: str) -> dict[str, Tensor]:
    """Tensors of one model or one merge in tests/data."""
    held = load_file(DATA / f"mergekit-{family}.safetensors")
    start = f"{group}/"
    return {name.removeprefix(start): w for name, w in held.items() if name.startswith(start)}


@pytest.mark.parametrize(
    ("family", "case"), [(family, case) for family, held in RECIPES.items() for case in held]
)
def test_the_tensors_are_those_of_mergekit(family: str, case: str, cropped: Path) -> None:
    recipe = Recipe.from_mapping(RECIPES[family][case], cropped / family)
    check(recipe, in_data(family, case))


@pytest.mark.parametrize("family", RECIPES)
def test_the_tensors_of_every_recipe_at_hand_are_those_of_mergekit(
    family: str, shared_fixtures: Path
) -> None:
    root = shared_fixtures / "mergekit"
    merged = set()
    for folder in sorted((root / "expected" / family).iterdir()):
        file = folder / "mergekit_config.yml"
        if not file.is_file():  # mergekit wrote the weights and crashed on the config
            file = root / "expected" / "llama-fp32" / folder.name / file.name
        text = file.read_text().replace("llama-fp32", family)
        mapping = yaml.safe_load(
            text.replace("float32", "bfloat16" if family[-4:] == "bf16" else "float32")
        )
        if mapping["merge_method"] not in registry().methods:
            continue
        shards = map(load_file, folder.glob("*.safetensors"))
        expected = {name: weight for shard in shards for name, weight in shard.items()}
        check(Recipe.from_mapping(mapping, root), expected)
        merged.add(folder.name)
    assert merged >= RECIPES[family].keys()


def check(recipe: Recipe, expected: Mapping[str, Tensor]) -> None:
    found = open_merge(recipe).plan
    tensors = Merge(found).tensors()
    assert tensors.keys() == expected.keys()
    wrong = {}
    for name, wanted in expected.items():
        got, planned = tensors[name][...], found.tensors[name]
        if recipe.merge_method in IN_FLOAT32 and recipe.dtype == "bfloat16":
            wanted = wanted.bfloat16()
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        is_float32 = wanted.dtype == torch.float32
        units = 1 if is_float32 else UNITS.get(recipe.merge_method, 1)
        off = (got.float() - wanted.float()).abs() > units * allowed(planned, wanted)
        off &= ~at_a_cut(planned)
        if off.any():
            wrong[name] = f"{int(off.sum())} of {off.numel()}: {got[off][0]} for {wanted[off][0]}"
    assert not wrong


def allowed(planned: PlannedTensor, wanted: Tensor) -> Tensor:
    """1e-6, or one bfloat16 unit in the last place of the largest number that took part."""
    inputs = [stored.view() for stored in planned.stored]
    if torch.bfloat16 not in (wanted.dtype, *(x.dtype for x in inputs)):
        return torch.tensor(1e-6)
    largest = torch.stack([x.float().abs() for x in (*inputs, wanted)]).amax(0)
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 8)


def at_a_cut(planned: PlannedTensor) -> Tensor:
    """Where several entries are as large as the last one kept: which of them stays is open."""
    anywhere = torch.zeros(planned.shape, dtype=torch.bool)
    settings: Mapping[str, Any] = planned.parameters
    if planned.base is None:
        return anywhere
    if isinstance(planned.kernel, ArceeFusion):
        return at_its_threshold(planned) if planned.dtype == torch.float32 else anywhere
    deltas = [expert.view() - planned.base.view() for expert in planned.experts]
    if settings.get("select_topk", 1.0) < 1:
        variance = torch.stack(deltas).var(0, unbiased=False)
        n_kept = int(settings["select_topk"] * int((variance != 0).sum()))
        anywhere |= equal_at(variance, n_kept)
    densities = settings.get("density", (1.0,) * len(deltas))
    gammas = settings.get("gamma", (0.0,) * len(deltas))
    for delta, density, gamma in zip(deltas, densities, gammas, strict=True):
        n_kept = int(density * delta.numel())
        n_outliers = min(int(gamma * delta.numel()), delta.numel() - n_kept)
        for cut in (n_outliers, n_outliers + n_kept) if density < 1 else ():
            anywhere |= equal_at(delta.abs(), cut)
    return anywhere


def at_its_threshold(planned: PlannedTensor) -> Tensor:
    """Where a change matters as much as it must for Arcee Fusion, but for float32 rounding.

    The divergence of two almost equal rows is a sum of terms that cancel. What is left of it in
    float32 depends on the processor's exp and log, and was seen to differ between two machines.
    """
    assert planned.base is not None
    if len(planned.shape) < 2:  # one divergence scales threshold and changes alike
        return torch.zeros(planned.shape, dtype=torch.bool)
    x, b = (stored.view().double() for stored in (*planned.experts, planned.base))
    p, q = x.softmax(-1), b.softmax(-1)
    terms = p * ((p + POSITIVE) / (q + POSITIVE)).log()
    rounding = 4 * torch.finfo(torch.float32).eps * (1 + terms.abs().sum(-1, keepdim=True))
    importance, uncertain = (x - b).abs() * terms.sum(-1, keepdim=True), (x - b).abs() * rounding
    ranked = importance.flatten().sort().values
    first, median, third = (ranked[int(share * (len(ranked) - 1))] for share in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (third - first)
    found = (importance - threshold).abs() <= uncertain + 4 * uncertain.median()
    assert found.float().mean() < 0.05, planned.name
    return found


def equal_at(size: Tensor, cut: int) -> Tensor:
    """Where an entry equals both the last one kept and the first one dropped."""
    ranked = size.flatten().sort(descending=True).values
    if not 0 < cut < len(ranked) or ranked[cut - 1] != ranked[cut]:
        return torch.zeros_like(size, dtype=torch.bool)
    return size == ranked[cut]
