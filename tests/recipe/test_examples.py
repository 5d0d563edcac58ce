"""The kinds of recipe that mergekit's documentation shows, merged on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from merge_plugins import Recipe
from merge_plugins.outputs.load import load_merged

FILE = Path(__file__).parents[1] / "data" / "mergekit-examples.yaml"
EXAMPLES = {held.pop("name"): held for held in yaml.safe_load_all(FILE.read_text())}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_merges_into_a_model_that_answers(name: str, llamas: dict[str, str]) -> None:
    recipe = Recipe.from_mapping(EXAMPLES[name], Path(llamas["base"]).parent)
    assert Recipe.from_mapping(yaml.safe_load(recipe.to_yaml())) == recipe
    live = load_merged(recipe)
    pieces = EXAMPLES[name].get("slices", [])
    lengths = [b - a for piece in pieces for a, b in [piece["sources"][0]["layer_range"]]]
    assert live.config.num_hidden_layers == (sum(lengths) or 2)
    assert live.dtype == getattr(torch, recipe.out_dtype or recipe.dtype or "bfloat16")
    assert torch.isfinite(live(torch.arange(8)[None]).logits).all()
