"""Models that are computed from others as they are read: deltas, other bases, merges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from merge_plugins import Recipe, identity, load_merged, merged_tensors, save
from merge_plugins.engine import open_merge
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.recipe import Delta, Rebased
from merge_plugins.recipe.references import files
from merge_plugins.weights import open_checkpoint

Write = Callable[..., str]
Spell = Callable[..., Recipe]
IDS = torch.tensor([[1, 5, 9, 2, 40, 17, 3, 3]])
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"lambda": 0.7},  # box by box
    "ties": {"weight": 0.7, "density": 0.4},  # measures the whole weight first
    "dare_linear": {"weight": 0.5, "density": 0.5},
    "ties_merging": {"trim_scope": "model"},  # looks at the whole model first
    "widen_merging": {},  # takes whole weights
}


def weights(seed: int, dtype: torch.dtype = torch.float32, rows: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (rows, 6),
        "model.layers.0.up_proj.weight": (10, 6),
        "model.norm.weight": (6,),
    }
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }


def close_to(base: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (w.float() + 0.05 * torch.randn(w.shape, generator=generator)).to(w.dtype)
        for name, w in base.items()
    }


def nested(method: str, llamas: Mapping[str, str], **top: Any) -> dict[str, Any]:
    experts = [{"model": llamas["math"]}, {"model": llamas["code"]}]
    return {
        "merge_method": method,
        "base_model": llamas["base"],
        "models": experts,
        "parameters": METHODS[method],
        **top,
    }


def outer(inner: Any, llamas: Mapping[str, str], method: str = "ties") -> Recipe:
    parameters = {"weight": 0.5, "density": 0.6} if method == "ties" else METHODS[method]
    return Recipe.from_mapping(
        {
            "merge_method": method,
            "base_model": llamas["base"],
            "models": [{"model": inner}, {"model": llamas["code"]}],
            "parameters": parameters,
        }
    )


@pytest.mark.parametrize(
    ("method", "around"),
    [*((method, "ties") for method in METHODS), *(("ties", around) for around in METHODS)],
)
def test_a_merge_is_a_source_as_if_it_had_been_saved(
    method: str, around: str, llamas: Mapping[str, str], tmp_path: Path
) -> None:
    inner = nested(method, llamas, seed=3)
    folder = save(Recipe.from_mapping(inner), tmp_path / "inner")
    expected = merged_tensors(outer(str(folder), llamas, around))
    found = merged_tensors(outer(inner, llamas, around))
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name][...], expected[name][...]), name
        assert found[name].dtype == expected[name].dtype


def test_a_merge_of_a_merge_loads_and_saves_the_same(
    llamas: Mapping[str, str], tmp_path: Path
) -> None:
    inner = nested("ties", llamas, out_dtype="float32")
    recipe = outer(nested("task_arithmetic", llamas) | {"base_model": inner}, llamas)
    recipe = Recipe.from_mapping({**recipe.as_dict(), "base_model": inner})
    live = load_merged(recipe)
    stored = AutoModelForCausalLM.from_pretrained(save(recipe, tmp_path / "saved"))
    assert live.dtype == stored.dtype == torch.float32  # the inner merge is the donor
    with torch.no_grad():
        assert torch.equal(live(IDS).logits, stored(IDS).logits)


def test_a_box_of_a_nested_merge_is_a_box_of_the_whole(llamas: Mapping[str, str]) -> None:
    recipe = outer(nested("ties", llamas), llamas, "task_arithmetic")
    name = "model.layers.0.mlp.up_proj.weight"
    small = open_merge(recipe, block=64).tensors()[name]
    whole = merged_tensors(recipe)[name][...]
    assert torch.equal(small[...], whole)
    assert torch.equal(small[3:17, 5:9], whole[3:17, 5:9])


def test_a_nested_recipe_may_be_a_file_relative_to_the_outer_one(
    llamas: Mapping[str, str], tmp_path: Path
) -> None:
    inner = nested("ties", llamas)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "inner.yaml").write_text(yaml.safe_dump(inner))
    text = yaml.safe_dump(
        {
            "merge_method": "linear",
            "models": [{"model": "parts/inner.yaml"}, {"model": llamas["code"]}],
            "parameters": {"weight": 0.5},
        }
    )
    (tmp_path / "merge.yaml").write_text(text)
    found = Recipe.load(tmp_path)
    assert found.models[0].ref == Recipe.from_mapping(inner)
    assert Recipe.from_mapping(found.as_dict()) == found
    assert identity.digest(found) == identity.digest(
        Recipe.from_mapping(yaml.safe_load(found.to_yaml()))
    )
    short = {"method": "linear", "models": f"{tmp_path}/parts/inner.yaml:0.5+{llamas['code']}:0.5"}
    assert Recipe.from_model_args(short) == found


def test_a_recipe_is_no_model_of_itself(llamas: Mapping[str, str], tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        held = {"merge_method": "linear", "models": [{"model": f"{other}.yaml"}]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(held))
    with pytest.raises(RecipeError, match=r"cannot be a model of itself: .*a\.yaml → .*b\.yaml"):
        Recipe.load(tmp_path / "a.yaml")


def test_an_error_in_a_nested_recipe_names_its_file(
    llamas: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "inner.yaml").write_text("merge_method: tiess\nmodels: [a]\n")
    with pytest.raises(RecipeError, match=r"inner\.yaml: no merge method 'tiess'"):
        Recipe.from_mapping({"merge_method": "linear", "models": ["inner.yaml"]}, tmp_path)
    with pytest.raises(RecipeError, match=r"no recipe file at .*gone\.yaml"):
        Recipe.from_mapping({"merge_method": "linear", "models": ["gone.yaml"]}, tmp_path)


def test_a_nested_merge_is_identified_by_its_content(
    llamas: Mapping[str, str], checkpoint: Write
) -> None:
    one, other = (
        identity.digest(outer(nested("ties", llamas, **top), llamas))
        for top in ({}, {"dtype": "float32"})
    )
    assert one != other
    assert one == identity.digest(outer(nested("ties", llamas), llamas))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_delta_is_added_to_its_model_in_float32(
    dtype: torch.dtype, checkpoint: Write, merged: Any
) -> None:
    base, delta = weights(0, dtype), {k: w * 0.01 for k, w in weights(1, dtype).items()}
    base_ref, delta_ref = checkpoint(base), checkpoint(delta)
    recovered = {"model": base_ref, "delta": delta_ref}
    found = merged("task_arithmetic", base_ref, [recovered], weight=0.5, out_dtype="float32")
    for name, tensor in found.items():
        exact = base[name].double() + 0.5 * delta[name].double()
        torch.testing.assert_close(tensor[...].double(), exact, rtol=0, atol=1e-6)
    alone = merged("passthrough", None, [recovered])
    assert {tensor.dtype for tensor in alone.values()} == {dtype}
    for name, tensor in alone.items():
        assert torch.equal(tensor[...], (base[name].float() + delta[name].float()).to(dtype))


def test_rows_that_only_the_delta_has_were_the_mean_of_the_models(
    checkpoint: Write, merged: Any
) -> None:
    base, delta = weights(0), weights(1, rows=10)
    found = merged("passthrough", None, [{"model": checkpoint(base), "delta": checkpoint(delta)}])[
        "model.embed_tokens.weight"
    ][...]
    embedding, added = base["model.embed_tokens.weight"], delta["model.embed_tokens.weight"]
    assert torch.equal(found[:8], embedding + added[:8])
    torch.testing.assert_close(found[8:], embedding.mean(0) + added[8:], rtol=0, atol=1e-6)


def test_a_delta_of_another_model_is_refused(checkpoint: Write, merged: Any) -> None:
    base, delta = weights(0), weights(1)
    delta["model.norm.weight"] = torch.ones(7)
    refs = {"model": checkpoint(base), "delta": checkpoint(delta)}
    with pytest.raises(MismatchError, match=r"norm.weight is \[7\] in the delta .* Is it a delta"):
        merged("passthrough", None, [refs])
    refs["delta"] = checkpoint({**weights(1), "lm_head.weight": torch.ones(8, 6)})
    with pytest.raises(MismatchError, match=r"lm_head.weight is in the delta .* but not in"):
        merged("passthrough", None, [refs])


def test_an_expert_of_another_base_keeps_its_task_vector(checkpoint: Write) -> None:
    base, code_base = weights(0), close_to(weights(0), 5)
    expert = close_to(code_base, 6)
    refs = [checkpoint(model) for model in (base, code_base, expert)]
    held = {
        "merge_method": "task_arithmetic",
        "base_model": refs[0],
        "models": [{"model": refs[2], "base_model": refs[1], "parameters": {"weight": 0.5}}],
    }
    recipe = Recipe.from_mapping(held)
    assert recipe.models[0].ref == Rebased(refs[2], refs[1])
    assert Recipe.from_mapping(recipe.as_dict()) == recipe
    assert set(refs) == {stored for ref in recipe.references for stored in files(ref)}
    for name, tensor in merged_tensors(recipe).items():
        vector = expert[name].double() - code_base[name].double()
        exact = base[name].double() + 0.5 * vector
        torch.testing.assert_close(tensor[...].double(), exact, rtol=0, atol=1e-6)
    held["models"][0]["base_model"] = refs[0]  # that of the recipe: nothing special
    assert Recipe.from_mapping(held).models[0].ref == refs[2]
    held["models"][0]["base_model"] = refs[2]
    with pytest.raises(RecipeError, match="is given as its own base_model"):
        Recipe.from_mapping(held)
    held["models"][0]["base_model"] = refs[1]
    held["merge_method"] = "linear"
    with pytest.raises(RecipeError, match="linear: merges models, not task vectors"):
        Recipe.from_mapping(held)


def test_another_base_needs_the_same_weights(checkpoint: Write, recipe: Spell) -> None:
    base, other = checkpoint(weights(0)), checkpoint(weights(1, rows=9))
    spelled = recipe("task_arithmetic", base, [{"model": checkpoint(weights(2))}], weight=1.0)
    held = spelled.as_dict()
    held["models"][0]["base_model"] = other
    with pytest.raises(
        MismatchError, match=r"embed_tokens.weight is \[8, 6\] in .* but \[9, 6\] in"
    ):
        open_merge(Recipe.from_mapping(held))


def test_references_nest(checkpoint: Write, merged: Any) -> None:
    base, first, second = weights(0), weights(1), weights(2)
    inner = {"model": checkpoint(base), "delta": checkpoint(first)}
    found = merged("passthrough", None, [{"model": inner, "delta": checkpoint(second)}])
    for name, tensor in found.items():
        assert torch.equal(tensor[...], base[name] + first[name] + second[name])


def test_nothing_of_a_computed_weight_stays(llamas: Mapping[str, str]) -> None:
    found = merged_tensors(outer(nested("widen_merging", llamas), llamas))
    name = "model.layers.0.mlp.up_proj.weight"
    found[name][...]
    (computed, _) = found[name].planned.experts
    assert computed._kept is None
    assert computed._holds == 0


def test_a_damaged_weight_below_a_computed_one_is_named(checkpoint: Write, merged: Any) -> None:
    bad = weights(0)
    bad["model.norm.weight"][4] = torch.nan
    delta = {"model": checkpoint(weights(1)), "delta": checkpoint(bad)}
    with pytest.raises(OSError, match=r"model.norm.weight holds NaN or infinity, first at \[4\]"):
        merged("passthrough", None, [delta])["model.norm.weight"][...]


def test_the_card_and_recipe_of_a_merge_of_merges_can_be_read_again(
    llamas: Mapping[str, str], tmp_path: Path
) -> None:
    recipe = outer(nested("task_arithmetic", llamas), llamas)
    folder = save(recipe, tmp_path / "saved")
    assert Recipe.load(folder) == recipe
    assert str(tmp_path) not in (folder / "README.md").read_text()
    assert set(load_file(folder / "model.safetensors")) == set(open_checkpoint(llamas["base"]))
    assert json.loads(json.dumps(open_merge(recipe).plan.as_dict()))["recipe"] == recipe.as_dict()


def test_a_delta_is_spelled_back(checkpoint: Write) -> None:
    refs = checkpoint(weights(0)), checkpoint(weights(1))
    models = [{"model": {"model": refs[0], "delta": refs[1]}}]
    held = {"merge_method": "passthrough", "models": models}
    recipe = Recipe.from_mapping(held)
    assert recipe.models[0].ref == Delta(*refs)
    assert recipe.as_dict()["models"] == held["models"]


def test_bases_with_other_tokens_are_brought_to_the_experts_tokens(checkpoint: Write) -> None:
    """CodeLlama has 32016 rows, its fine-tune one more, the base of the merge 32000."""

    def model(seed: int, *tokens: str) -> tuple[dict[str, Tensor], str]:
        held = weights(seed, rows=len(tokens))
        folder = checkpoint(held, vocab_size=len(tokens))
        vocab = {token: row for row, token in enumerate(tokens)}
        Path(folder, "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
        return held, folder

    (base, base_ref), (own, own_ref) = model(0, "a", "b"), model(1, "a", "fim", "b")
    expert, expert_ref = model(2, "a", "fim", "b", "<pad>")
    held = {
        "merge_method": "task_arithmetic",
        "base_model": base_ref,
        "models": [{"model": expert_ref, "base_model": own_ref}],
        "parameters": {"weight": 0.5},
        "tokenizer_source": "base",
    }
    found = merged_tensors(Recipe.from_mapping(held))
    name = "model.embed_tokens.weight"
    vector = expert[name][[0, 2]] - own[name][[0, 2]]
    torch.testing.assert_close(found[name][...], base[name] + 0.5 * vector, rtol=0, atol=1e-6)
    union = merged_tensors(Recipe.from_mapping({**held, "tokenizer_source": "union"}))[name][...]
    assert union.shape == (4, 6)
    torch.testing.assert_close(union[2:], expert[name][[1, 3]], rtol=0, atol=1e-6)
