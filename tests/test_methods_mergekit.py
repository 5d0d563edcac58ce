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

from merge_plugins import MergeError, Recipe, registry
from merge_plugins.plan import PlannedTensor, plan
from merge_plugins.runner import Merge

DATA = Path(__file__).parent / "data"
RECIPES = json.loads((DATA / "mergekit-recipes.json").read_text())
MODELS = ("base", "ft_a", "ft_b", "ft_c")
NOT_YET = ("feat_frankenmerge", "feat_lora", "feat_slice_params", "feat_tok")
"""Cases whose method we have and whose layout or vocabulary we do not."""


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
    for file in sorted((root / "expected" / family).glob("*/mergekit_config.yml")):
        mapping, folder = yaml.safe_load(file.read_text()), file.parent
        if mapping["merge_method"] not in registry().methods:
            continue
        if folder.name.startswith(NOT_YET):
            with pytest.raises(MergeError):
                plan(Recipe.from_mapping(mapping, root))
            continue
        shards = map(load_file, folder.glob("*.safetensors"))
        expected = {name: weight for shard in shards for name, weight in shard.items()}
        check(Recipe.from_mapping(mapping, root), expected)
        merged.add(folder.name)
    assert merged >= RECIPES[family].keys()


def check(recipe: Recipe, expected: Mapping[str, Tensor]) -> None:
    found = plan(recipe)
    tensors = Merge(found).tensors()
    assert tensors.keys() == expected.keys()
    wrong = {}
    for name, wanted in expected.items():
        got, planned = tensors[name][...], found.tensors[name]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        off = (got.float() - wanted.float()).abs() > allowed(planned, wanted)
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
    if planned.base is None or "density" not in settings:
        return anywhere
    gammas = settings.get("gamma", (0.0,) * len(planned.experts))
    for stored, density, gamma in zip(planned.experts, settings["density"], gammas, strict=True):
        size = (stored.view() - planned.base.view()).abs()
        ranked, n = size.flatten().sort(descending=True).values, size.numel()
        n_outliers = min(int(gamma * n), n - int(density * n))
        for cut in (n_outliers, n_outliers + int(density * n)):
            if density < 1 and 0 < cut < n and ranked[cut - 1] == ranked[cut]:
                anywhere |= size == ranked[cut]
    return anywhere
