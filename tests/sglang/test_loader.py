"""SGLang's loader finds a merge in a recipe folder: its real source, without an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge_plugins import Recipe, mount, save

pytestmark = pytest.mark.usefixtures("sglang")


@pytest.fixture(scope="module")
def load(sglang: None) -> Callable[..., dict[str, torch.Tensor]]:
    """Load SGLang's plugins as its processes do, then ask its loader for a folder's weights."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader.loader import DefaultModelLoader
    from sglang.srt.plugins import load_plugins

    load_plugins()

    def found(folder: Path | str, prefix: str = "") -> dict[str, torch.Tensor]:
        loader = DefaultModelLoader(LoadConfig())
        source = DefaultModelLoader.Source(str(folder), None, prefix)
        weights = loader._get_weights_iterator(source)
        return {name: torch.empty(w.shape, dtype=w.dtype).copy_(w) for name, w in weights}

    return found


@pytest.fixture(scope="module")
def recipe(llamas: dict[str, str]) -> dict[str, Any]:
    held = {"merge_method": "ties", "base_model": llamas["base"], "dtype": "float32"}
    parameters = {"weight": 1.0, "density": 0.6}
    return {**held, "models": [llamas["math"], llamas["code"]], "parameters": parameters}


def test_weights_are_the_saved_ones(load: Any, recipe: Any, tmp_path: Path) -> None:
    folder = mount(Recipe.from_mapping(recipe), tmp_path / "mounted")
    saved = load_file(save(Recipe.from_mapping(recipe), tmp_path / "saved") / "model.safetensors")
    found = load(folder, "model.")
    assert found.keys() == {f"model.{name}" for name in saved}
    assert all(torch.equal(found[f"model.{name}"], tensor) for name, tensor in saved.items())


def test_other_models_are_sglangs_own(load: Any, llamas: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="Global server args is not set"):  # which its own needs
        load(Path(llamas["base"]).parent)


def test_an_update_is_another_merge(load: Any, recipe: Any, tmp_path: Path) -> None:
    """What /update_weights_from_disk does: the same call, with another folder."""
    first = load(mount(Recipe.from_mapping(recipe), tmp_path / "one"))
    recipe = {**recipe, "parameters": {"weight": 0.3, "density": 0.6}}
    second = load(mount(Recipe.from_mapping(recipe), tmp_path / "two"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
