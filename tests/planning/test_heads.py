"""Heads of different tasks are never averaged by oversight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import edit
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from merge_plugins import Recipe, merged_tensors
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.identity import digest

SMALL: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 8,
}
CLASSES: Mapping[str, Any] = {
    "base": (BertModel, BertConfig),
    "masked": (BertForMaskedLM, BertConfig),
    "bert": (BertForSequenceClassification, BertConfig),
    "roberta": (RobertaForSequenceClassification, RobertaConfig),
}
Model = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Write a new model of random weights, with these keys in its config."""
    root = tmp_path_factory.mktemp("heads")

    def write(kind: str = "bert", n_labels: int = 2, **keys: Any) -> str:
        folder = root / str(len([*root.iterdir()]))
        model_class, config_class = CLASSES[kind]
        model_class(config_class(num_labels=n_labels, **SMALL)).save_pretrained(folder)
        edit(folder, **keys)
        return str(folder)

    return write


def average(*models: str, **keys: Any) -> Recipe:
    return Recipe.from_mapping({"merge_method": "average_merging", "models": [*models], **keys})


def tensors(recipe: Recipe) -> dict[str, Tensor]:
    return {name: tensor[...] for name, tensor in merged_tensors(recipe).items()}


NAMED = {"id2label": {"0": "negative", "1": "positive"}}
TASKS: Mapping[str, Any] = {
    "labels": (NAMED, {"id2label": {"0": "no", "1": "yes"}}, r"id2label is \['negative', 'pos"),
    "labels in another order": (
        NAMED,
        {"id2label": {"0": "positive", "1": "negative"}},
        r"id2label is .*'positive', 'negative'",
    ),
    "tasks": ({"finetuning_task": "sst2"}, {"finetuning_task": "mrpc"}, "_task is sst2 .* mrpc"),
    "problems": (
        {"problem_type": "regression", **NAMED},
        {"problem_type": "single_label_classification", **NAMED},
        "problem_type is regression .* single_label_classification",
    ),
    "nothing": ({}, {}, "names neither its labels nor its task"),
}


@pytest.mark.parametrize("what", TASKS)
def test_heads_of_two_tasks_are_refused_and_the_error_says_what_to_type(
    what: str, model: Model
) -> None:
    given, others, said = TASKS[what]
    first, second = model(**given), model(**others)
    with pytest.raises(MismatchError, match=f"{first} and {second} are .*{said}.*exclude: heads"):
        merged_tensors(average(first, second))
    found = tensors(average(first, second, exclude="heads"))
    one, two = (load_file(Path(folder, "model.safetensors")) for folder in (first, second))
    assert torch.equal(found["classifier.weight"], one["classifier.weight"])
    name = "bert.pooler.dense.weight"  # of the base model, as in the papers
    assert torch.allclose(found[name], (one[name] + two[name]) / 2)
    both = tensors(average(first, second, exclude="none"))
    assert torch.allclose(
        both["classifier.weight"], (one["classifier.weight"] + two["classifier.weight"]) / 2
    )


def test_heads_of_other_sizes_are_told_by_what_to_type(model: Model) -> None:
    with pytest.raises(MismatchError, match=r"number of labels is 2 .* 3 in .* exclude: heads"):
        merged_tensors(average(model(), model(n_labels=3)))


@pytest.mark.parametrize("keys", [NAMED, {"finetuning_task": "sst2"}])
def test_heads_of_one_task_are_merged(keys: dict[str, Any], model: Model) -> None:
    models = [model(**keys) for _ in range(3)]
    assert "classifier.weight" in tensors(average(*models))


def test_scores_of_rerankers_are_merged(model: Model) -> None:
    assert "classifier.weight" in tensors(average(model(n_labels=1), model(n_labels=1)))


def test_heads_that_come_from_one_head_are_merged(model: Model) -> None:
    base, *experts = (model() for _ in range(3))
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "models": experts}
    assert "classifier.weight" in tensors(Recipe.from_mapping(recipe))
    edit(experts[0], finetuning_task="sst2")
    edit(experts[1], finetuning_task="mrpc")
    with pytest.raises(MismatchError, match="different tasks"):
        merged_tensors(Recipe.from_mapping(recipe))


def test_a_head_that_is_excluded_by_name_is_excluded(model: Model) -> None:
    first, second = model(), model()
    found = tensors(average(first, second, exclude=["classifier"]))
    assert {name: w.tolist() for name, w in found.items()} == {
        name: w.tolist() for name, w in tensors(average(first, second, exclude="heads")).items()
    }
    with pytest.raises(MismatchError, match="exclude: heads"):
        merged_tensors(average(first, second, exclude=["classifier.bias"]))


@pytest.mark.filterwarnings("ignore:4 weights copied from .* bert.pooler")
@pytest.mark.parametrize("base", ["base", "masked"])
def test_a_base_without_that_head_gives_what_is_below(base: str, model: Model) -> None:
    experts = [model(), model(n_labels=3)]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": model(base),
        "models": experts,
        "exclude": ["heads"] if base == "base" else ["heads", "pooler"],  # which that has none of
        "donor": experts[1],
    }
    found = tensors(Recipe.from_mapping(recipe))
    own = load_file(Path(experts[1], "model.safetensors"))
    assert torch.equal(found["classifier.weight"], own["classifier.weight"])
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(found[name], own[name])


def test_every_weight_outside_the_base_model_is_of_the_head(model: Model) -> None:
    first, second = model("roberta"), model("roberta")
    found = tensors(average(first, second, exclude="heads"))
    own = load_file(Path(first, "model.safetensors"))
    kept = {name for name in own if torch.equal(found[name], own[name])}
    assert kept >= {name for name in own if name.startswith("classifier.")}
    assert not [name for name in kept if name.startswith("roberta.") and own[name].std() > 0]


def test_heads_of_models_that_have_none_are_refused(model: Model) -> None:
    with pytest.raises(RecipeError, match="no model of this merge has one"):
        merged_tensors(average(model("base"), model("base"), exclude="heads"))


def test_heads_of_a_class_that_is_unknown_are_refused(model: Model) -> None:
    unknown = model()
    edit(unknown, architectures=["OwnForSequenceClassification"])
    with pytest.raises(RecipeError, match=r"has none of OwnForS.* exclude: \[classifier\]"):
        merged_tensors(average(unknown, model(), exclude="heads"))


def test_a_merge_of_everything_is_the_same_merge_however_it_is_said(model: Model) -> None:
    first, second = model(**NAMED), model(**NAMED)
    assert digest(average(first, second)) == digest(average(first, second, exclude="none"))
    short = {"method": "average_merging", "models": f"{first}+{second}", "exclude": "heads"}
    assert Recipe.from_model_args(short) == average(first, second, exclude="heads")
    with pytest.raises(RecipeError, match="none stands alone"):
        average(first, second, exclude=["none", "heads"])
