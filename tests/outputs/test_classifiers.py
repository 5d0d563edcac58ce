"""A merge of classifiers: one encoder in memory, the head of each task, and what each answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import HEADS, WORDS, write_classifiers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from merge_plugins import MergeError, Recipe, digest, load_classifiers, load_merged
from merge_plugins.cli import main


@pytest.fixture(scope="module", params=["roberta", "bert"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_classifiers(tmp_path_factory.mktemp(request.param), request.param)


def glue(family: Mapping[str, str], method: str = "task_arithmetic", **keys: Any) -> Recipe:
    models = [{"model": family[task], "task": task} for task in HEADS]
    return Recipe.from_mapping(
        {"merge_method": method, "base_model": family["base"], "models": models, **keys}
    )


def n_bytes(module: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def weights(model: Any) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


EXCLUDED: Mapping[str, Mapping[str, Any]] = {"heads": {}, "biases, too": {"exclude": ["bias"]}}


@pytest.mark.parametrize("what", EXCLUDED)
def test_each_task_has_the_model_that_it_would_have_alone(what: str, family: Any) -> None:
    recipe = glue(family, parameters={"scaling_coefficient": 0.3}, **EXCLUDED[what])
    live = load_classifiers(recipe)
    assert live.tasks == (*HEADS,)
    for task, (n_labels, said) in HEADS.items():
        model, tokenizer = live.for_task(task)
        alone = load_merged(recipe.for_task(task), AutoModelForSequenceClassification)
        assert type(model) is type(alone)
        assert not model.training
        assert model.config.num_labels == n_labels
        if said:
            assert [*model.config.id2label.values()] == [*said["id2label"].values()]
        assert model.name_or_path == family[task]
        found, wanted = weights(model), weights(alone)
        assert found.keys() == wanted.keys()
        assert not [name for name in found if not torch.equal(found[name], wanted[name])]
        inputs = tokenizer(" ".join(WORDS[:9]), return_tensors="pt", truncation=True)
        with torch.no_grad():
            assert torch.allclose(model(**inputs).logits, alone(**inputs).logits, atol=1e-6)


def test_what_is_merged_is_in_memory_once(family: Any) -> None:
    live = load_classifiers(glue(family))
    models = [live.for_task(task)[0] for task in HEADS]
    encoder = n_bytes(models[0].base_model)
    every = [weight for model in models for weight in model.parameters()]
    once = {weight.untyped_storage().data_ptr(): weight.nbytes for weight in every}
    assert sum(once.values()) == sum(map(n_bytes, models)) - (len(models) - 1) * encoder
    assert len(once) == len({id(weight) for weight in every})


def test_a_model_that_is_moved_or_trained_takes_the_encoder_along(family: Any) -> None:
    live = load_classifiers(glue(family))
    first, other = (live.for_task(task)[0] for task in ("cola", "mnli"))
    first.double()
    assert {weight.dtype for weight in other.base_model.parameters()} == {torch.float64}


def test_the_excluded_biases_are_those_of_the_task(family: Any) -> None:
    live = load_classifiers(glue(family, exclude=["bias"]))
    for task in HEADS:
        own = AutoModelForSequenceClassification.from_pretrained(family[task])
        found = live.for_task(task)[0]
        apart = {n for n, w in own.named_parameters() if torch.equal(w, weights(found)[n])}
        expected = {n for n, _ in own.named_parameters() if "bias" in n or n.startswith("classif")}
        assert expected <= apart
        assert not [n for n in apart - expected if "LayerNorm" not in n and "pooler" not in n]


def test_merges_follow_each_other_in_one_memory(family: Any) -> None:
    live = load_classifiers(glue(family, parameters={"scaling_coefficient": 0.1}))
    before = {task: live.for_task(task)[0] for task in HEADS}
    for recipe in (
        glue(family, parameters={"scaling_coefficient": 0.9}),
        glue(family, "ties_merging"),
    ):
        assert live.become(recipe)
        anew = load_classifiers(recipe)
        for task in HEADS:
            assert live.for_task(task)[0] is before[task]
            found, wanted = weights(before[task]), weights(anew.for_task(task)[0])
            assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not live.become(glue(family, exclude=["bias"]))


def test_a_pipeline_takes_what_a_task_has(family: Any) -> None:
    model, tokenizer = load_classifiers(glue(family)).for_task("mnli")
    answer = pipeline("text-classification", model=model, tokenizer=tokenizer)("w1 w2 w3")
    assert answer[0]["label"] in HEADS["mnli"][1]["id2label"].values()


def test_a_task_is_mounted_and_saved_with_its_own_head(
    family: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = glue(family)
    Path(tmp_path, "glue.yaml").write_text(recipe.to_yaml())
    for command in ("mount", "save"):
        words = [command, str(tmp_path / "glue.yaml"), str(tmp_path / command), "--task", "mnli"]
        assert main(words) == 0
    wanted, _ = load_classifiers(recipe).for_task("mnli")
    for command in ("mount", "save"):
        found = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / command, trust_remote_code=True
        )
        assert found.config.id2label == wanted.config.id2label
        own = weights(found)
        assert not [name for name, w in weights(wanted).items() if not torch.equal(own[name], w)]
        assert AutoTokenizer.from_pretrained(tmp_path / command)("w1")["input_ids"]
    assert main(["mount", str(tmp_path / "glue.yaml"), str(tmp_path / "x"), "--task", "sst2"]) == 1
    assert "no model of this merge has task: sst2; there are cola" in capsys.readouterr().err


def test_a_digest_covers_tasks_and_their_tokenizers(family: Any, tmp_path: Path) -> None:
    recipe = glue(family)
    digests = {digest(recipe), *(digest(recipe.for_task(task)) for task in HEADS)}
    assert len(digests) == len(HEADS)  # the first task's is the recipe's
    labelled = recipe.as_dict()
    labelled["models"][2]["task"] = {"name": "mnli", "labels": ["entailment", "neutral", "c"]}
    assert digest(Recipe.from_mapping(labelled)) not in digests


def test_models_that_do_not_answer_a_task_are_refused(family: Any) -> None:
    def average(*models: Any, **keys: Any) -> Recipe:
        return Recipe.from_mapping({"merge_method": "average_merging", "models": [*models], **keys})

    with pytest.raises(MergeError, match="says which task its head answers"):
        load_classifiers(average(family["cola"], family["rte"], exclude="heads"))
    answering = {"model": family["cola"], "task": "cola"}
    other = {"model": family["base"], "task": "sst2"}
    with pytest.raises(
        MergeError, match=r"has task: sst2, but its config.json names .*no \.\.\.ForSeq"
    ):
        load_classifiers(average(answering, other))


@pytest.mark.parametrize("method", ["average_merging", "mask_merging"])
def test_the_head_of_one_model_is_not_merged_either(method: str, family: Any) -> None:
    recipe = Recipe.from_mapping(
        {
            "merge_method": method,
            "base_model": family["base"],
            "models": [{"model": family["mnli"], "task": "mnli"}],
            "parameters": {"weight_mask_rate": 0.9} if method == "mask_merging" else {},
        }
    )
    found = weights(load_classifiers(recipe).for_task("mnli")[0])
    own = weights(AutoModelForSequenceClassification.from_pretrained(family["mnli"]))
    heads = [name for name in own if name.startswith("classifier")]
    assert heads
    assert all(torch.equal(found[name], own[name]) for name in heads)
    name = next(name for name in own if name.endswith("0.output.dense.weight"))
    assert torch.equal(found[name], own[name]) == (method == "average_merging")


def test_heads_of_one_task_are_merged_when_that_is_said(family: Any) -> None:
    models = [{"model": family[name], "task": "rte"} for name in ("rte", "cola")]
    recipe = Recipe.from_mapping(
        {"merge_method": "average_merging", "models": models, "exclude": "none"}
    )
    found = weights(load_classifiers(recipe).for_task("rte")[0])
    first, second = (
        weights(AutoModelForSequenceClassification.from_pretrained(family[name]))
        for name in ("rte", "cola")
    )
    head = next(name for name in first if name.startswith("classifier"))
    assert torch.allclose(found[head], (first[head] + second[head]) / 2)


@pytest.mark.filterwarnings("ignore:4 weights copied from .* bert.pooler")
def test_a_weight_that_the_base_lacks_is_the_tasks_own(tmp_path: Path) -> None:
    family = write_classifiers(tmp_path, "poolerless")
    live = load_classifiers(glue(family))
    for task in HEADS:
        own = AutoModelForSequenceClassification.from_pretrained(family[task])
        found = live.for_task(task)[0]
        assert torch.equal(found.bert.pooler.dense.weight, own.bert.pooler.dense.weight)
        query = found.bert.encoder.layer[0].attention.self.query.weight
        assert not torch.equal(query, own.bert.encoder.layer[0].attention.self.query.weight)
