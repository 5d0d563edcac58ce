"""Layers of models stacked anew: what comes from where, what the config says, what is free."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from merge_plugins import Recipe, identity, load_merged, merged_tensors, save
from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeWarning, MismatchError, RecipeError
from merge_plugins.planning.config import with_depth

Write = Callable[..., str]


def weights(seed: int, n_layers: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (8, 4)}
    for i in range(n_layers):
        shapes[f"model.layers.{i}.self_attn.o_proj.weight"] = (4, 4)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (6, 4)
    shapes |= {"model.norm.weight": (4,), "lm_head.weight": (8, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def models(checkpoint: Write) -> dict[str, str]:
    config = {"num_hidden_layers": 4, "vocab_size": 8}
    return {name: checkpoint(weights(i), **config) for i, name in enumerate(["base", "a", "b"])}


def source(ref: str, *layers: int, **parameters: Any) -> dict[str, Any]:
    return {"model": ref, "layer_range": list(layers), "parameters": parameters}


def stack(method: str, *pieces: Any, **top: Any) -> Recipe:
    """Spell a recipe; a piece is the list of its sources, or a whole slice."""
    slices = [{"sources": piece} if isinstance(piece, list) else piece for piece in pieces]
    return Recipe.from_mapping({"merge_method": method, "slices": slices, **top})


def read(recipe: Recipe) -> dict[str, Tensor]:
    return {name: tensor[...] for name, tensor in merged_tensors(recipe).items()}


UP = "model.layers.{}.mlp.up_proj.weight"


# Which layer comes from where


def test_layers_are_stacked_in_the_order_of_the_slices(models: dict[str, str]) -> None:
    a, b = weights(1), weights(2)
    merged = read(stack("passthrough", [source(models["a"], 0, 3)], [source(models["b"], 1, 4)]))
    assert len(merged) == 2 * 6 + 3
    for output, (model, layer) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        assert torch.equal(merged[UP.format(output)], model[UP.format(layer)])
    assert torch.equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(merged["model.norm.weight"], b["model.norm.weight"])
    assert torch.equal(merged["lm_head.weight"], b["lm_head.weight"])


def test_each_slice_merges_its_own_layers_over_its_own_base(models: dict[str, str]) -> None:
    base, a, b = weights(0), weights(1), weights(2)
    second = {
        "base_model": models["a"],
        "sources": [source(models["b"], 1, 3, weight=[0.0, 1.0]), source(models["a"], 2, 4)],
    }
    merged = read(
        stack(
            "task_arithmetic",
            [source(models["a"], 0, 2, weight=0.25)],
            second,
            base_model=models["base"],
        )
    )
    up = [UP.format(i) for i in range(4)]
    expected = base[up[1]] + 0.25 * (a[up[1]] - base[up[1]])
    assert torch.allclose(merged[up[1]], expected, atol=1e-6)
    assert torch.equal(merged[up[2]], a[up[2]])  # weight 0: the first of the slice's two layers
    assert torch.allclose(merged[up[3]], b[up[2]], atol=1e-6)
    assert torch.equal(merged["model.norm.weight"], a["model.norm.weight"])


def test_an_empty_last_slice_gives_norm_and_head(models: dict[str, str]) -> None:
    found = open_merge(
        stack("passthrough", [source(models["a"], 0, 2)], [source(models["b"], 4, 4)])
    ).plan
    (head,), (embedding,) = (
        found.tensors[name].models for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    assert (head, embedding) == (models["b"], models["a"])
    assert found.config["num_hidden_layers"] == 2


def test_models_of_the_last_slice_without_a_partner_are_told(models: dict[str, str]) -> None:
    sources = [source(models["a"], 1, 2, weight=1), source(models["b"], 2, 3, weight=1)]
    recipe = stack("linear", [source(models["base"], 0, 1, weight=1)], sources)
    with pytest.warns(MergeWarning, match="without .*, as mergekit does it"):
        found = open_merge(recipe).plan
    assert found.tensors["model.norm.weight"].models == (models["a"],)
    assert found.tensors[UP.format(1)].models == (models["a"], models["b"])


def test_filters_of_a_model_ask_for_its_own_layers(models: dict[str, str]) -> None:
    own = [{"filter": "layers.3.", "value": 0.0}, {"value": 1.0}]
    found = open_merge(stack("passthrough", [source(models["a"], 2, 4, scale=own)])).plan
    scales = [found.tensors[UP.format(i)].parameters["scale"] for i in range(2)]
    assert scales == [(1.0,), (0.0,)]


def test_a_slice_of_the_base_alone_is_a_copy_of_it(models: dict[str, str]) -> None:
    first = [source(models["a"], 0, 2, weight=1), source(models["base"], 0, 2)]
    recipe = stack("ties", first, [source(models["base"], 2, 4)], base_model=models["base"])
    merged = read(recipe)
    assert torch.equal(merged[UP.format(3)], weights(0)[UP.format(3)])
    with pytest.raises(RecipeError, match="slerp: takes 1 model besides base_model; got 0 in slic"):
        open_merge(
            stack(
                "slerp",
                [source(models["a"], 0, 2), source(models["base"], 0, 2)],
                [source(models["base"], 2, 4)],
                base_model=models["base"],
                parameters={"t": 0.5},
            )
        )


def test_a_stack_is_a_source_of_another_merge(models: dict[str, str]) -> None:
    tall = stack("passthrough", [source(models["a"], 0, 4)], [source(models["b"], 2, 4)])
    inner = tall.as_dict()
    again = stack("passthrough", [source(inner, 4, 6)])
    assert torch.equal(read(again)[UP.format(1)], weights(2)[UP.format(3)])
    assert stack("passthrough", [source(inner, 0, 6)]) == Recipe.from_mapping(
        {"merge_method": "passthrough", "models": [{"model": inner}]}
    )


# One recipe for all spellings


def test_settings_at_any_level_are_one_recipe(models: dict[str, str]) -> None:
    pieces = [[source(models["a"], 0, 2), source(models["b"], 0, 2)], [source(models["a"], 2, 4)]]
    top = stack("linear", *pieces, parameters={"weight": 0.5})
    each = [{"sources": piece, "parameters": {"weight": 0.5}} for piece in pieces]
    assert stack("linear", *each) == top
    assert identity.digest(stack("linear", *each)) == identity.digest(top)
    modules = {
        "default": {"slices": [{"sources": p} for p in pieces], "parameters": {"weight": 0.5}}
    }
    assert Recipe.from_mapping({"merge_method": "linear", "modules": modules}) == top
    assert Recipe.from_mapping(top.as_dict()) == top
    assert top.as_dict()["parameters"] == {"weight": 0.5}
    assert top.is_stack


def test_other_layers_are_another_recipe(models: dict[str, str]) -> None:
    one, other = (stack("passthrough", [source(models["a"], 0, n)]) for n in (2, 3))
    assert one != other
    assert identity.digest(one) != identity.digest(other)


# What is free


def test_a_layer_that_is_copied_is_a_map_of_the_file(models: dict[str, str]) -> None:
    recipe = stack("passthrough", [source(models["a"], 0, 2)], [source(models["a"], 0, 2)])
    found = open_merge(recipe).plan
    assert all(tensor.kernel is None for tensor in found.tensors.values())
    merged = read(recipe)
    once, twice = merged[UP.format(0)], merged[UP.format(2)]
    assert torch.equal(once, twice)
    once.zero_()
    assert twice.any()
    file = Path(models["a"], "model.safetensors")
    assert load_file(file)[UP.format(0)].any()
    maps = Path("/proc/self/maps")
    if maps.exists():
        lines = [line for line in maps.read_text().splitlines() if str(file) in line]
        starts = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]
        assert any(first <= twice.data_ptr() < last for first, last in starts)


# What a model must have


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((2, 5), r"layer_range \[2, 5\] of .*, which has 4 layers: it ends at 4 at most"),
        ((0, 9), r"layer_range \[0, 9\] of .*, which has 4 layers"),
    ],
)
def test_a_range_beyond_the_model_is_refused(
    layers: tuple[int, int], message: str, models: dict[str, str]
) -> None:
    with pytest.raises(MismatchError, match=message):
        open_merge(stack("passthrough", [source(models["a"], *layers)]))


def test_a_model_with_two_stacks_is_refused(checkpoint: Write) -> None:
    t5 = checkpoint({f"{part}.block.{i}.w": torch.ones(2) for part in "ab" for i in range(2)})
    with pytest.raises(MismatchError, match=r"more than one stack of layers: a\.block\.N, b\.bl"):
        open_merge(stack("passthrough", [source(t5, 0, 1)]))


def test_sources_without_a_range_need_equal_depth(
    models: dict[str, str], checkpoint: Write
) -> None:
    small = checkpoint(weights(3, n_layers=2))
    sources = [source(small, 0, 1, weight=1)], [{"model": m} for m in (models["a"], small)]
    with pytest.raises(MismatchError, match=r"as many layers each; got 4 of .*, 2 of"):
        open_merge(stack("linear", *sources, parameters={"weight": 1}))


@pytest.mark.parametrize("method", ["fisher_merging", "twin_merging"])
def test_methods_that_look_at_whole_models_say_what_to_do(
    method: str, models: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "x"}\n')
    sources = [source(models[name], 0, 2) for name in ("a", "b")]
    top = {"base_model": models["base"], "data": str(tmp_path / "texts.jsonl")}
    with pytest.raises(RecipeError, match="whole models, not at layers or parts of them"):
        open_merge(stack(method, sources, **top))


# The config


def test_lists_with_an_entry_per_layer_follow_their_layers() -> None:
    one = {
        "num_hidden_layers": 3,
        "layer_types": ["full", "sliding", "full"],
        "mlp_only_layers": [0, 2],
        "eos_token_id": [1, 2, 3],
        "architectures": ["A", "B", "C"],
        "hidden_size": 3,
    }
    other = {**one, "layer_types": ["x", "y", "z"], "mlp_only_layers": []}
    found = with_depth(one, [(one, 0), (one, 1), (one, 0), (other, 2)])
    assert found == {
        **one,
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "full", "z"],
        "mlp_only_layers": [0, 2],
    }


def test_the_config_of_a_part_has_its_own_depth() -> None:
    config = {"text_config": {"n_layer": 2, "layer_types": ["a", "b"]}, "other": 1}
    found = with_depth(config, [(config, 1), (config, 1), (config, 0)])
    assert found["text_config"] == {"n_layer": 3, "layer_types": ["b", "b", "a"]}


def test_windows_that_begin_at_a_layer_stay_with_their_layers() -> None:
    config = {"num_hidden_layers": 2, "use_sliding_window": True, "max_window_layers": 1}
    found = with_depth(config, [(config, i) for i in (0, 1, 0)])
    assert found["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    assert with_depth({"num_hidden_layers": 2}, [({}, 0)] * 3) == {"num_hidden_layers": 3}


# A live model


def test_a_taller_qwen_loads_saves_and_is_what_its_layers_are(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "small")
    held = json.loads((tmp_path / "small/config.json").read_text())
    held.pop("layer_types", None)  # as checkpoints of before 2025 are
    (tmp_path / "small/config.json").write_text(json.dumps(held))
    ref = str(tmp_path / "small")
    recipe = stack("passthrough", [source(ref, 0, 2)], [source(ref, 0, 2)], out_dtype="bfloat16")
    live = load_merged(recipe)
    assert (live.config.num_hidden_layers, live.dtype) == (4, torch.bfloat16)
    ids = torch.arange(9)[None]
    logits = live(ids).logits
    small = AutoModelForCausalLM.from_pretrained(ref, dtype=torch.bfloat16)
    small.model.layers.extend(list(small.model.layers))
    small.config.num_hidden_layers = 4
    small.config.layer_types = ["full_attention"] * 4
    small.model.config = small.config
    assert torch.equal(small(ids, use_cache=False).logits, logits)
    save(recipe, tmp_path / "tall")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "tall")(ids).logits, logits)
    assert identity.digest(Recipe.load(tmp_path / "tall")) == identity.digest(recipe)
