"""Which recipe an engine loads, and what is refused before a weight is read."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_plugins import Recipe, mount
from merge_plugins.errors import CheckpointError, MismatchError, RecipeError, UntrustedCodeError
from merge_plugins.plugins import registry

pytestmark = pytest.mark.usefixtures("vllm")
Weights = Callable[..., Iterator[tuple[str, Any]]]
Load = Callable[..., dict[str, Any]]


@pytest.fixture
def weights(vllm: None, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Iterate over the weights that vLLM would hand to a model, with their names, merged."""
    from vllm.config import ModelConfig
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    from harness_adapters.vllm import register

    register()
    monkeypatch.chdir(workplace)

    def found(
        model: str, recipe: Any = None, plugin: str | None = None, **options: Any
    ) -> Iterator[tuple[str, Any]]:
        given = {"recipe": recipe, "plugin": plugin}
        extra = {key: value for key, value in given.items() if value is not None}
        loader = get_model_loader(
            LoadConfig(
                load_format="merged", model_loader_extra_config=extra, use_tqdm_on_load=False
            )
        )
        config = ModelConfig(model=model, dtype="float32", **options)
        loader.download_model(config)
        yield from ((name, tensor + 0) for name, tensor in loader.get_all_weights(config, None))

    return found


@pytest.fixture
def load(weights: Weights) -> Load:
    """Return all these weights by name."""
    return lambda *args, **options: dict(weights(*args, **options))


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_weights_are_the_saved_ones(family: str, load: Load, workplace: Path) -> None:
    from safetensors.torch import load_file

    saved = load_file(workplace / family / "good-saved" / "model.safetensors")
    inline = yaml.safe_load((workplace / family / "good.yaml").read_text())
    inline["base_model"] = str(workplace / family / inline["base_model"])
    inline["models"] = [str(workplace / family / name) for name in inline["models"]]
    for found in (
        load(f"{family}/good"),
        load(f"{family}/base", f"{family}/good.yaml"),
        load(str(workplace / family / "base"), inline),
    ):
        assert found.keys() == saved.keys()
        assert all((found[name] == tensor).all() for name, tensor in saved.items())


def test_a_plugin_in_a_file_is_named_beside_the_recipe_or_comes_with_the_folder(
    load: Load, workplace: Path, plugin_file: Callable[..., Path]
) -> None:
    file = plugin_file("return self.scale * slot.stacked().mean(dim=0)")
    models = [str(workplace / "dense" / name) for name in ("math", "code")]
    spelled = {"merge_method": "own", "models": models}
    found = load(models[0], spelled, str(file))
    mounted = str(mount(Recipe.from_mapping(spelled), workplace / "carrying"))
    registry().unload("own.py")
    with pytest.raises(UntrustedCodeError, match=r"its method is in plugins/own\.py"):
        load(mounted)
    carried = load(mounted, trust_remote_code=True)
    assert carried.keys() == found.keys()
    assert all((carried[name] == tensor).all() for name, tensor in found.items())


def test_a_model_that_is_no_merge_needs_a_recipe(load: Load) -> None:
    with pytest.raises(RecipeError, match=r"dense/base holds no recipe.*merge-plugins mount"):
        load("dense/base")


def test_the_model_is_that_whose_config_the_merge_has(load: Load, workplace: Path) -> None:
    with pytest.raises(RecipeError, match=f"are those of {workplace}/dense/base: give it that"):
        load("dense/math", "dense/good.yaml")


def test_a_draft_model_speaks_for_itself(load: Load, workplace: Path) -> None:
    from safetensors.torch import load_file

    found = load("dense/code", "dense/good.yaml", runner="draft")
    own = load_file(workplace / "dense" / "code" / "model.safetensors")
    assert all((found[name] == tensor).all() for name, tensor in own.items())


def test_layers_that_the_model_does_not_have_are_refused(load: Load, workplace: Path) -> None:
    stack = workplace / "stack.yaml"
    ranges = [{"model": "dense/base", "layer_range": [0, 2]}]
    slices = [{"sources": ranges}, {"sources": ranges}]
    stack.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
    with pytest.raises(MismatchError, match="num_hidden_layers 4, the model that vLLM built 2"):
        load("dense/base", str(stack))
    mount(Recipe.load(stack), workplace / "stack")
    assert "model.layers.3.mlp.up_proj.weight" in load("stack")


def test_a_merge_that_weighs_experts_by_the_prompt_is_refused(load: Load, workplace: Path) -> None:
    held = {"merge_method": "emr", "base_model": "dense/base", "parameters": {"router": "fixed"}}
    routed = workplace / "routed.yaml"
    routed.write_text(yaml.safe_dump({**held, "models": ["dense/math", "dense/code"]}))
    with pytest.raises(RecipeError, match="no vLLM engine can hold"):
        load("dense/base", str(routed))


def test_a_changed_source_is_an_error(load: Load, workplace: Path) -> None:
    shutil.copytree(workplace / "dense", workplace / "moved")
    shutil.copy(workplace / "dense/code/model.safetensors", workplace / "moved/math")
    with pytest.raises(MismatchError, match="moved/math changed"):
        load("moved/good")


def test_a_source_that_changes_while_it_loads_is_named(weights: Weights, workplace: Path) -> None:
    shutil.copytree(workplace / "dense", workplace / "written-to")
    file = workplace / "written-to" / "math" / "model.safetensors"
    found = weights("written-to/good")
    next(found)
    os.utime(file, ns=(0, 0))
    with pytest.raises(CheckpointError, match=r"math/model\.safetensors changed while it was rea"):
        dict(found)


def test_options_that_nobody_knows_are_vllms_error() -> None:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    from harness_adapters.vllm import register

    register()
    with pytest.raises(ValueError, match="recipes"):
        get_model_loader(
            LoadConfig(load_format="merged", model_loader_extra_config={"recipes": "a.yaml"})
        )


def test_an_engine_that_merges_nothing_survives_a_release_we_do_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harness_adapters.vllm import register

    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader.ep_weight_filter", None)
    monkeypatch.delitem(sys.modules, "harness_adapters.vllm.loader", raising=False)
    with pytest.warns(UserWarning, match="no load format 'merged': .*ep_weight_filter"):
        register()


def test_the_dtype_that_vllm_loads_in_is_not_that_of_the_arithmetic(
    load: Load, workplace: Path
) -> None:
    import torch
    from vllm.model_executor.model_loader import base_loader

    family = workplace / "dense"
    models = [
        {"model": str(family / name), "parameters": {"weight": 0.3}} for name in ("math", "code")
    ]
    recipe = {"merge_method": "linear", "models": models}
    expected = load(str(family / "math"), recipe)
    with base_loader.set_default_torch_dtype(torch.bfloat16):
        found = load(str(family / "math"), recipe)
    assert all((found[name] == tensor).all() for name, tensor in expected.items())
