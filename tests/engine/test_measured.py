"""A merge that differs in what nothing was measured by measures nothing again."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_plugins import Recipe, merged_tensors, shared_sources
from merge_plugins.api import Weight
from merge_plugins.engine import measured as measuring
from merge_plugins.methods.task_vectors import Ties

MODELS = ("base", "a", "b")
GIVEN: dict[str, Any] = {"weight": 0.7, "density": 0.4, "lambda": 1.0}


@pytest.fixture
def models(checkpoint: Callable[..., str]) -> dict[str, str]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (30, 40), "v": (50,)}
    return {
        model: checkpoint({n: torch.randn(s, generator=generator) for n, s in shapes.items()})
        for model in MODELS
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the weights that TIES has measured."""
    names: list[str] = []
    measure = Ties.measure

    def noting(self: Ties, weight: Weight) -> Mapping[str, Tensor]:
        names.append(weight.name)
        return measure(self, weight)

    monkeypatch.setattr(Ties, "measure", noting)
    return names


def merge(models: Mapping[str, str], *experts: str, **given: Any) -> dict[str, Tensor]:
    top = {key: given.pop(key) for key in ("seed", "dtype", "out_dtype") if key in given}
    recipe = Recipe.from_mapping(
        {
            "merge_method": "ties",
            "base_model": models["base"],
            "models": [models[name] for name in experts or ("a", "b")],
            "parameters": {**GIVEN, **given},
            **top,
        }
    )
    return {name: tensor[...] for name, tensor in merged_tensors(recipe).items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_change_of_lambda_or_weight_measures_nothing_again(
    models: dict[str, str], measured: list[str]
) -> None:
    with shared_sources():
        merge(models)
        assert sorted(measured) == ["v", "w"]
        found = merge(models, **{"lambda": 0.5}), merge(models, weight=0.2, normalize=False)
        assert len(measured) == 2
    gc.collect()
    wanted = merge(models, **{"lambda": 0.5}), merge(models, weight=0.2, normalize=False)
    assert len(measured) > 2, "what was measured goes with the files"
    assert all(map(same, found, wanted))


@pytest.mark.parametrize(
    "change", [{"density": 0.5}, {"rescale": True}, {"seed": 3}, {"dtype": "bfloat16"}], ids=str
)
def test_whatever_it_depends_on_measures_again(
    change: dict[str, Any], models: dict[str, str], measured: list[str]
) -> None:
    with shared_sources():
        merge(models)
        found = merge(models, **change)
    assert len(measured) == 4
    assert same(found, merge(models, **change))


def test_other_sources_measure_again(models: dict[str, str], measured: list[str]) -> None:
    with shared_sources():
        merge(models)
        found = merge(models, "b", "a")
        assert len(measured) == 4
        file = Path(models["a"], "model.safetensors")
        os.utime(file, ns=(1, 1))
        merge(models)
    assert len(measured) == 6
    assert same(found, merge(models, "b", "a"))


def test_another_value_in_a_few_weights_measures_only_those(
    models: dict[str, str], measured: list[str]
) -> None:
    with shared_sources():
        merge(models)
        merge(models, density=[{"filter": "v", "value": 0.5}, {"value": 0.4}])
    assert sorted(measured) == ["v", "v", "w"]


def test_only_the_last_measurements_are_kept(models: dict[str, str], measured: list[str]) -> None:
    with shared_sources():
        for density in range(1, measuring.MOST + 2):
            merge(models, density=density / 100)
        n_measured = len(measured)
        merge(models, density=2 / 100)
        assert len(measured) == n_measured
        merge(models, density=1 / 100)
        assert len(measured) == n_measured + 2
