"""A merge that differs in what nothing was measured by measures nothing again."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from merge_plugins import Recipe, merged_tensors, shared_sources
from merge_plugins.api import Weight
from merge_plugins.engine import measured as measuring
from merge_plugins.methods.task_vectors import Ties
from merge_plugins.weights import open_checkpoint, signature
from merge_plugins.weights.pieces import Piece, arranged
from merge_plugins.weights.rows import MEAN, OTHER, with_rows

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


def merge(models: Mapping[str, Any], *experts: Any, **given: Any) -> dict[str, Tensor]:
    top = {key: given.pop(key) for key in ("seed", "dtype", "out_dtype") if key in given}
    named = [models[e] if isinstance(e, str) else {"model": e} for e in experts or ("a", "b")]
    recipe = Recipe.from_mapping(
        {
            "merge_method": "ties",
            "base_model": models["base"],
            "models": named,
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


def adapter(folder: Path, alpha: float) -> str:
    """Write a LoRA adapter of the weight ``w`` of the models above."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["w"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    factors = {"A": torch.randn(2, 40, generator=generator), "B": torch.ones(30, 2)}
    tensors = {f"base_model.model.w.lora_{k}.weight": factor for k, factor in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.fixture
def computed(checkpoint: Callable[..., str], tmp_path: Path) -> Callable[[str], list[Any]]:
    """Two experts that differ only in how they are computed."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"w.weight": (30, 40), "v": (50,)}
    base, one, other = (
        checkpoint({n: torch.randn(s, generator=generator) for n, s in shapes.items()})
        for _ in range(3)
    )

    def make(kind: str) -> list[Any]:
        if kind == "adapter":
            loras = (adapter(tmp_path / str(alpha), alpha) for alpha in (4, 8))
            return [base, *({"model": one, "lora": lora} for lora in loras)]
        if kind == "delta":
            return [base, {"model": one, "delta": other}, {"model": other, "delta": one}]
        return [base, {"model": one, "base_model": other}, {"model": other, "base_model": one}]

    return make


@pytest.mark.parametrize("kind", ["adapter", "delta", "rebased"])
def test_what_was_measured_of_computed_weights_is_remembered(
    kind: str, computed: Callable[[str], list[Any]], measured: list[str]
) -> None:
    base, first, second = computed(kind)
    with shared_sources():
        merge({"base": base}, first)
        assert sorted(measured) == ["v", "w.weight"]
        found = merge({"base": base}, first, **{"lambda": 0.5})
        assert len(measured) == 2
        other = merge({"base": base}, second)
        assert "w.weight" in measured[2:], "computed of the same files, in another way"
    gc.collect()
    assert same(found, merge({"base": base}, first, **{"lambda": 0.5}))
    assert same(other, merge({"base": base}, second))


def test_weights_have_one_signature_if_they_are_computed_alike(models: dict[str, str]) -> None:
    with shared_sources():
        w, v, other = (
            open_checkpoint(models[model])[name]
            for model, name in (("a", "w"), ("a", "v"), ("b", "w"))
        )
        left, right = ((0, 30), (0, 20)), ((0, 30), (20, 40))
        halves = [Piece(box, "w", box, (0, 1)) for box in (left, right)]
        swapped = [Piece(left, "w", right, (0, 1)), Piece(right, "w", left, (0, 1))]
        rows = list(range(29))

        def ways() -> list[Any]:
            return [
                w,
                v,
                other,
                with_rows(w, [*rows, 29, MEAN]),
                with_rows(w, [*rows, 0, MEAN]),
                with_rows(w, [*rows, OTHER], {29: [(other, 3)]}),
                with_rows(w, [*rows, OTHER], {29: [(other, 4)]}),
                with_rows(w, [*rows, OTHER], {29: []}),
                arranged("w", (30, 40), tuple(halves), {"w": w}),
                arranged("w", (30, 40), tuple(swapped), {"w": w}),
                arranged("w", (30, 40), tuple(swapped), {"w": other}),
            ]

        signatures = list(map(signature, ways()))
        assert signatures == list(map(signature, ways()))
        assert len({*signatures, None}) == len(signatures) + 1
