"""Everything that can be wrong with a merge is found in headers, before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_plugins import identity
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, MismatchError, RecipeError
from merge_plugins.planning import Plan
from merge_plugins.planning.names import gradient_position, layer_of

Write = Callable[..., str]
Spell = Callable[..., Any]


def model(n_layers: int = 2, vocabulary: int = 8, **extra: Tensor) -> dict[str, Tensor]:
    weights = {"model.embed_tokens.weight": torch.ones(vocabulary, 4)}
    for i in range(n_layers):
        weights[f"model.layers.{i}.self_attn.q_proj.weight"] = torch.ones(4, 4)
        weights[f"model.layers.{i}.mlp.up_proj.weight"] = torch.ones(6, 4)
    return {**weights, "model.norm.weight": torch.ones(4), **extra}


@pytest.fixture
def planned(checkpoint: Write, recipe: Spell) -> Callable[..., Plan]:
    """Plan task arithmetic of models given as tensors, the base first."""

    def make(base: dict[str, Tensor], *experts: dict[str, Tensor], **given: Any) -> Plan:
        base_ref, *refs = (checkpoint(tensors) for tensors in (base, *experts))
        return open_merge(
            recipe(given.pop("method", "task_arithmetic"), base_ref, refs, **given)
        ).plan

    return make


def without(weights: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if name not in names}


def test_a_plan_names_the_inputs_and_parameters_of_every_tensor(planned: Any) -> None:
    found = planned(model(), model(), model(), weight=[1.0, 0.0], out_dtype="bfloat16")
    assert list(found.tensors) == list(found.donor)
    tensor = found.tensors["model.layers.1.mlp.up_proj.weight"]
    assert (tensor.shape, tensor.dtype) == ((6, 4), torch.bfloat16)
    assert tensor.parameters["weight"] == (0.0, 0.0)
    assert len(tensor.stored) == 3
    assert found.bytes_merged * 6 == found.bytes_read
    shown = json.loads(json.dumps(found.as_dict()))
    assert shown["digest"] == identity.digest(found.recipe)
    entry = shown["tensors"]["model.norm.weight"]
    assert entry["parameters"]["weight"] == [1.0, 1.0]
    assert [i["model"] for i in entry["inputs"]] == [found.recipe.base_model, *found.experts]
    assert {i["tensor"] for i in entry["inputs"]} == {"model.norm.weight"}


def test_a_method_without_a_base_reads_none(planned: Any) -> None:
    found = planned(model(), model(), model(), method="average_merging")
    assert all(tensor.base is None for tensor in found.tensors.values())
    inputs = found.as_dict()["tensors"]["model.norm.weight"]["inputs"]
    assert [entry["model"] for entry in inputs] == list(found.experts)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", 3),
        ("transformer.h.11.attn.c_attn.weight", 11),
        ("model.layers.2.mlp.experts.7.w1.weight", 2),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_a_tensors_layer_is_the_first_number_in_its_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_gradients_run_from_the_first_layer_to_the_last(planned: Any) -> None:
    assert [gradient_position(i, 5) for i in (None, 0, 1, 4)] == [0, 0, 0.25, 1]
    assert gradient_position(0, 1) == 1.0  # mergekit's rule
    found = planned(model(3), model(3), weight=[0.0, 1.0])
    read = [found.tensors[f"model.layers.{i}.mlp.up_proj.weight"].parameters for i in range(3)]
    assert [parameters["weight"] for parameters in read] == [(0.0,), (0.5,), (1.0,)]
    assert found.tensors["model.norm.weight"].parameters["weight"] == (0.0,)


@pytest.mark.parametrize(
    ("base", "expert", "message"),
    [
        (
            model(),
            model(vocabulary=9),
            r"model.embed_tokens.weight is \[8, 4\] in .* but \[9, 4\] in .* "
            r"\(model.safetensors\)\. Their vocabularies differ: set tokenizer_source: base",
        ),
        (
            model(),
            {**model(), "model.norm.weight": torch.ones(5)},
            r"model.norm.weight is \[4\] in .* but \[5\] in .* equal shapes",
        ),
        (
            model(),
            without(model(), "model.norm.weight"),
            r"model.norm.weight is in .* but not in .*leave a head of its own out",
        ),
        (
            without(model(), "model.norm.weight"),
            model(),
            r"model.norm.weight \[4\] is in .* \(model.safetensors\) but not in .*, which names",
        ),
        (
            model(),
            {**model(), "model.norm.weight": torch.ones(4).to(torch.float8_e4m3fn)},
            r"model.safetensors: model.norm.weight is torch.float8_e4m3fn, which cannot be merged",
        ),
        (
            {**model(), "model.norm.weight": torch.ones(4).to(torch.float8_e5m2)},
            model(),
            r"model.safetensors: model.norm.weight is torch.float8_e5m2, which cannot be merged",
        ),
        (
            model(),
            {**model(), "model.norm.weight": torch.ones(4, dtype=torch.int8)},
            r"model.safetensors: model.norm.weight is torch.int8, which cannot be merged",
        ),
    ],
    ids=["vocabulary", "shape", "missing", "extra", "float8", "float8 base", "integers"],
)
def test_models_that_do_not_fit_are_refused_with_name_and_file(
    base: dict[str, Tensor], expert: dict[str, Tensor], message: str, planned: Any
) -> None:
    with pytest.raises(MismatchError, match=message):
        planned(base, model(), expert)


def test_a_filter_that_matches_nothing_is_refused(planned: Any) -> None:
    rules = [{"filter": "attention", "value": 0.5}, {"value": 1.0}]
    expected = r"filter 'attention' is part of no tensor's name. Names look like 'model\."
    with pytest.raises(RecipeError, match=expected):
        planned(model(), model(), weight=rules)


def test_a_model_that_is_missing_is_refused(checkpoint: Write, recipe: Spell) -> None:
    base = checkpoint(model())
    with pytest.raises(CheckpointError, match=r"no model '/no/such': no such folder"):
        open_merge(recipe("task_arithmetic", base, ["/no/such"]))


def test_mistakes_in_the_recipe_come_before_mistakes_on_disk(recipe: Spell) -> None:
    with pytest.raises(RecipeError, match="density is a share"):
        open_merge(recipe("ties", "/no/such", ["/nor/such"], weight=1, density=20))


def test_nothing_is_read_but_headers(planned: Any) -> None:
    bad = {**model(), "model.norm.weight": torch.full((4,), torch.nan)}
    assert planned(bad, bad).tensors  # found when it is merged, by test_runner


HEAD = {"lm_head.weight": torch.ones(8, 4)}


def tied(checkpoint: Write, weights: dict[str, Tensor], **config: Any) -> str:
    return checkpoint(weights, tie_word_embeddings=True, vocab_size=8, **config)


def test_a_tied_experts_head_is_its_embedding(checkpoint: Write, recipe: Spell) -> None:
    base, expert = checkpoint({**model(), **HEAD}), tied(checkpoint, model())
    found = open_merge(recipe("task_arithmetic", base, [expert])).plan
    (stored,) = found.tensors["lm_head.weight"].experts
    assert stored.name == "model.embed_tokens.weight"


def test_a_tied_model_that_lacks_another_weight_is_refused(
    checkpoint: Write, recipe: Spell
) -> None:
    # one layer: its q_proj is missing and another weight has the same shape
    whole = model(1, **{"model.layers.0.self_attn.o_proj.weight": torch.ones(4, 4)})
    base = checkpoint({**whole, **HEAD})
    expert = tied(checkpoint, without(whole, "model.layers.0.self_attn.q_proj.weight"))
    with pytest.raises(MismatchError, match=r"q_proj.weight is in .* but not in"):
        open_merge(recipe("task_arithmetic", base, [expert]))


def test_an_untied_expert_of_a_tied_base_keeps_no_head_unseen(
    checkpoint: Write, recipe: Spell
) -> None:
    base, expert = tied(checkpoint, model()), checkpoint({**model(), **HEAD})
    with pytest.raises(MismatchError, match=r"lm_head.weight \[8, 4\] is in .*output head"):
        open_merge(recipe("task_arithmetic", base, [expert]))


def test_a_tied_head_that_is_stored_twice_is_no_head_of_its_own(
    checkpoint: Write, recipe: Spell
) -> None:
    base = tied(checkpoint, model())
    twice = tied(checkpoint, {**model(), "lm_head.weight": torch.ones(8, 4)})
    found = open_merge(recipe("task_arithmetic", base, [twice])).plan
    assert "lm_head.weight" not in found.tensors
    other = tied(checkpoint, {**model(), "lm_head.weight": torch.zeros(8, 4)})
    with pytest.raises(MismatchError, match=r"lm_head.weight \[8, 4\] is in"):
        open_merge(recipe("task_arithmetic", base, [other]))


INV_FREQ = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}


def test_buffers_that_classes_compute_are_left_out_unless_all_models_have_them(
    planned: Any,
) -> None:
    old = {**model(), **INV_FREQ}
    assert not INV_FREQ.keys() & planned(old, model()).tensors.keys()
    assert not INV_FREQ.keys() & planned(model(), old).tensors.keys()
    everywhere = planned(old, old).tensors[next(iter(INV_FREQ))]
    assert everywhere.kernel is None


def test_mixed_dtypes_merge_into_the_bases_unless_the_recipe_says_so(planned: Any) -> None:
    half = {name: weight.bfloat16() for name, weight in model().items()}

    def dtype(**given: Any) -> torch.dtype:
        return planned(half, model(), **given).tensors["model.norm.weight"].dtype

    assert dtype() == torch.bfloat16
    assert dtype(dtype="float32") == torch.float32
    assert dtype(dtype="float32", out_dtype="float16") == torch.float16
