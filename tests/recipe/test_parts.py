"""Models of several parts, each merged in its own way: mergekit's modules."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import seeded, write_family
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from merge_plugins import Recipe, identity, load_merged, merged_tensors, save
from merge_plugins.engine import open_merge
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.recipe.parts import part_of

Write = Callable[..., str]
MERGEKIT = os.environ.get("MERGE_PLUGINS_MERGEKIT", "")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 of three layers each way, and two fine-tunes of it, in float32."""
    root = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=32,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=3,
        num_heads=2,
        feed_forward_proj="gated-gelu",  # the only kind of T5 that mergekit knows
    )
    write_family(seeded(config, T5ForConditionalGeneration), root, spread=0.05)
    return root


def weights(t5: Path, name: str) -> dict[str, Tensor]:
    return load_file(t5 / name / "model.safetensors")


def read(recipe: Recipe) -> dict[str, Tensor]:
    return {name: tensor[...] for name, tensor in merged_tensors(recipe).items()}


def linear(share: float) -> dict[str, Any]:
    """Say: models a and b, with that share of a."""
    return {
        "models": [
            {"model": "a", "parameters": {"weight": share}},
            {"model": "b", "parameters": {"weight": 1 - share}},
        ]
    }


def stacked(*ranges: tuple[str, int, int]) -> dict[str, Any]:
    return {
        "slices": [
            {"sources": [{"model": m, "layer_range": [i, j], "parameters": {"weight": 1}}]}
            for m, i, j in ranges
        ]
    }


def recipe(folder: Path, **modules: Any) -> Recipe:
    mapping = {"merge_method": "linear", "base_model": "base", "modules": modules}
    return Recipe.from_mapping(mapping, folder)


def test_each_module_is_merged_in_its_own_way(t5: Path) -> None:
    a, b = weights(t5, "a"), weights(t5, "b")
    merged = read(recipe(t5, encoder=linear(1.0), decoder=linear(0.25), shared=linear(0.5)))
    assert merged.keys() == a.keys()
    shares = {"encoder": 1.0, "decoder": 0.25, "shared": 0.5}
    for name, weight in merged.items():
        share = shares[name.partition(".")[0]]
        torch.testing.assert_close(weight, share * a[name] + (1 - share) * b[name])


def test_one_module_is_stacked_while_another_is_merged_whole(t5: Path, tmp_path: Path) -> None:
    a, b = weights(t5, "a"), weights(t5, "b")
    taller = stacked(("a", 0, 3), ("b", 1, 3))
    found = recipe(t5, decoder=taller, encoder=linear(0.5), shared=linear(0.5))
    assert open_merge(found).plan.config["num_decoder_layers"] == 5
    assert open_merge(found).plan.config["num_layers"] == 3
    merged = read(found)
    weight = "decoder.block.{}.layer.2.DenseReluDense.wi_0.weight"
    for layer, (model, own) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2)]):
        assert torch.equal(merged[weight.format(layer)], model[weight.format(own)])
    assert torch.equal(
        merged["decoder.final_layer_norm.weight"], b["decoder.final_layer_norm.weight"]
    )
    live = load_merged(found, AutoModelForSeq2SeqLM)
    saved = AutoModelForSeq2SeqLM.from_pretrained(save(found, tmp_path / "saved"))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        answers = [m(input_ids=ids, decoder_input_ids=ids).logits for m in (live, saved)]
    assert torch.equal(*answers)


def test_a_gradient_runs_over_the_layers_of_each_stack(t5: Path) -> None:
    """Of whole models too: a part with fewer layers than another still ends at the last value."""
    config = json.loads((t5 / "base" / "config.json").read_text())
    assert config["num_layers"] == config["num_decoder_layers"] == 3
    shallow = recipe(t5, encoder=stacked(("a", 0, 2)), decoder=linear(1), shared=linear(1))
    mapping = {
        "merge_method": "linear",
        "models": [{"model": shallow.as_dict(), "parameters": {"weight": [0.0, 1.0]}}],
        "parameters": {"normalize": False},
    }
    found = open_merge(Recipe.from_mapping(mapping)).plan
    weight = "{}.block.{}.layer.0.SelfAttention.q.weight"
    for stack, n_layers in (("encoder", 2), ("decoder", 3)):
        for layer in range(n_layers):
            planned = found.tensors[weight.format(stack, layer)]
            assert planned.parameters["weight"] == (layer / (n_layers - 1),)


def test_modules_survive_being_written(t5: Path) -> None:
    found = recipe(t5, decoder=stacked(("a", 0, 3), ("b", 1, 3)), default=linear(0.5))
    again = Recipe.from_mapping(found.as_dict())
    assert again == found
    assert (
        identity.digest(again)
        == identity.digest(found)
        != identity.digest(recipe(t5, default=linear(0.5)))
    )


def test_a_module_is_named_by_how_its_weights_begin(t5: Path) -> None:
    """So are mergekit's modules of families that it does not know."""
    by_word = recipe(t5, encoder=linear(0.25), default=linear(0.5))
    mapping = {"encoder.block": linear(0.25), "encoder": linear(0.25), "default": linear(0.5)}
    expected, merged = read(by_word), read(recipe(t5, **mapping))
    assert all(torch.equal(merged[name], weight) for name, weight in expected.items())


def test_weights_that_no_module_takes_are_an_error(t5: Path) -> None:
    with pytest.raises(MismatchError, match=r"no module takes shared\.weight.*\{shared: \{models"):
        open_merge(recipe(t5, encoder=linear(1), decoder=linear(1)))


def test_a_module_without_weights_is_an_error(t5: Path) -> None:
    with pytest.raises(RecipeError, match=r"no weight is of 'vision_tower'.*names look like"):
        open_merge(recipe(t5, vision_tower=linear(1), default=linear(1)))


def test_what_is_excluded_needs_no_module(t5: Path) -> None:
    found = recipe(t5, encoder=linear(1), decoder=linear(1)).as_dict() | {"exclude": ["shared"]}
    merged = read(Recipe.from_mapping(found))
    assert torch.equal(merged["shared.weight"], weights(t5, "base")["shared.weight"])


def test_a_model_of_one_module_may_lack_the_others(checkpoint: Write) -> None:
    """An encoder from elsewhere: nothing is said of its decoder, and nothing is lost silently."""
    both = {f"{part}.block.0.w.weight": torch.ones(2, 2) for part in ("encoder", "decoder")}
    base = checkpoint(both)
    other = checkpoint({"encoder.block.0.w.weight": 3 * torch.ones(2, 2)})
    entry = {"models": [{"model": other, "parameters": {"weight": 1}}]}
    own = {"models": [{"model": base, "parameters": {"weight": 1}}]}
    mapping = {"merge_method": "linear", "modules": {"encoder": entry, "decoder": own}}
    merged = read(Recipe.from_mapping({**mapping, "donor": base}))
    assert merged["encoder.block.0.w.weight"].unique().tolist() == [3.0]
    assert merged["decoder.block.0.w.weight"].unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "part"),
    {
        "model.embed_tokens.weight": "text_decoder",
        "model.language_model.layers.0.mlp.up_proj.weight": "text_decoder",
        "language_model.model.norm.weight": "text_decoder",
        "lm_head.weight": "text_decoder",
        "visual.blocks.3.attn.proj.weight": "vision_tower",
        "model.visual.patch_embed.proj.weight": "vision_tower",
        "vision_tower.vision_model.encoder.layers.1.layer_norm1.bias": "vision_tower",
        "visual.merger.mlp.0.weight": "multi_modal_projector",
        "model.visual.deepstack_merger_list.0.norm.weight": "multi_modal_projector",
        "multi_modal_projector.mm_input_projection_weight": "multi_modal_projector",
    }.items(),
)
def test_mergekits_words_for_parts_of_vision_models(name: str, part: str) -> None:
    assert part_of(name, ["text_decoder", "vision_tower", "multi_modal_projector"]) == part


def test_the_config_of_a_tower_has_its_own_depth(checkpoint: Write) -> None:
    names = [f"visual.blocks.{i}.w.weight" for i in range(2)]
    names += [f"model.layers.{i}.w.weight" for i in range(3)]
    model = checkpoint(
        {name: torch.ones(2, 2) for name in names},
        text_config={"num_hidden_layers": 3, "layer_types": ["x", "y", "z"]},
        vision_config={"depth": 2},
    )
    tower, text = (
        {"slices": [{"sources": [{"model": model, "layer_range": [0, n]}]} for n in each]}
        for each in ((2, 1), (1, 3))
    )
    modules = {"vision_tower": tower, "text_decoder": text}
    config = open_merge(
        Recipe.from_mapping({"merge_method": "passthrough", "modules": modules})
    ).plan.config
    assert config["vision_config"] == {"depth": 3}
    assert config["text_config"] == {"num_hidden_layers": 4, "layer_types": ["x", "x", "y", "z"]}


def spelled(t5: Path, **modules: Any) -> Mapping[str, Any]:
    """Return a recipe as mergekit reads it: absolute paths, every model listed."""
    found = recipe(t5, **modules).as_dict()
    return {key: value for key, value in found.items() if key != "base_model"}


@pytest.mark.skipif(
    not MERGEKIT, reason="set MERGE_PLUGINS_MERGEKIT=/path/to/mergekit-yaml (0.1.5)"
)
@pytest.mark.parametrize("depth", [2, 3])
def test_mergekit_merges_modules_the_same_way(depth: int, t5: Path, tmp_path: Path) -> None:
    decoder = {**stacked(("a", 0, 1), ("b", 1, depth)), "parameters": {"normalize": False}}
    gradient = {
        "models": [
            {"model": "a", "parameters": {"weight": [0.0, 1.0]}},
            {"model": "b", "parameters": {"weight": [0.5, 0.0, 0.25]}},
        ]
    }
    mapping = spelled(t5, encoder=gradient, decoder=decoder, shared=linear(0.25))
    (tmp_path / "recipe.yml").write_text(json.dumps(mapping))
    subprocess.run([MERGEKIT, tmp_path / "recipe.yml", tmp_path / "out"], check=True)
    shards = map(load_file, (tmp_path / "out").glob("*.safetensors"))
    expected = {name: weight for shard in shards for name, weight in shard.items()}
    merged = read(Recipe.from_mapping(mapping))
    assert merged.keys() == expected.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
