"""Twin-Merging of classifiers: every row of a mixed batch, under any head, is the formula's."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from text_classifiers import inputs_of, rows_of
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from merge_plugins import Recipe, load_classifiers, load_merged
from merge_plugins.errors import MergeError
from merge_plugins.routing.requests import READ

Weights = dict[str, Tensor]
TASKS = ("cola", "mnli", "stsb")
SCALE, MASK_RATE = 0.3, 0.75
HEADS, HEADS_AND_BIASES = ["heads"], ["heads", "bias"]
"""What is excluded: as papers do it, and as the released code of Twin-Merging does."""
pytestmark = pytest.mark.usefixtures("one_thread")
some_kinds = pytest.mark.parametrize("kind", ["roberta", "deberta"])


def spelled(
    folders: Mapping[str, str],
    data: Mapping[str, str] | None,
    exclude: Sequence[str] = (),
    **given: Any,
) -> Recipe:
    models = [
        {"model": folders[task], "task": task, **({"data": data[task]} if data else {})}
        for task in TASKS
    ]
    parameters = {
        "scaling_coefficient": SCALE,
        "mask_rate": MASK_RATE,
        "router": "centroid" if data else "fixed",
        **given,
    }
    recipe = {
        "merge_method": "twin_merging",
        "base_model": folders["base"],
        "models": models,
        "exclude": [*exclude],
        "parameters": parameters,
    }
    return Recipe.from_mapping(recipe)


def weights_of(model: Any) -> Weights:
    return {name: weight.detach().double() for name, weight in model.named_parameters()}


class Reference:
    """The formula in float64: for every row, weights are written anew into the task's expert."""

    def __init__(self, folders: Mapping[str, str], exclude: Sequence[str]) -> None:
        load = AutoModelForSequenceClassification.from_pretrained
        self.experts = {task: load(folders[task]).eval().double() for task in TASKS}
        self.tokenizer = AutoTokenizer.from_pretrained(folders["base"])
        base = weights_of(AutoModel.from_pretrained(folders["base"]))
        own = [weights_of(expert.base_model) for expert in self.experts.values()]
        merged = [name for name in own[0] if not ("bias" in exclude and "bias" in name)]
        self.shared = {n: base[n] + SCALE * sum(each[n] - base[n] for each in own) for n in merged}
        self.branches = [
            {name: compressed(each[name] - self.shared[name]) for name in merged} for each in own
        ]

    def weights(self, row: Mapping[str, Any]) -> Tensor:
        """The posterior of equal Gaussians around the means of each task's features."""
        means, variance = self._centroids
        off = (self.features(inputs_of(self.tokenizer, row)) - means).square().sum(1)
        return (-off / (2 * variance)).softmax(0)

    @torch.no_grad()
    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        base = self.experts[TASKS[0]].base_model
        return torch.func.functional_call(base, self.shared, (), dict(inputs))[0][0].mean(0)  # type: ignore[no-any-return]

    @functools.cached_property
    def _centroids(self) -> tuple[Tensor, Tensor]:
        seen = [
            torch.stack([self.features(inputs_of(self.tokenizer, row)) for row in rows_of(task)])
            for task in TASKS
        ]
        means = torch.stack([rows.mean(0) for rows in seen])
        scatter = torch.cat([rows - mean for rows, mean in zip(seen, means, strict=True)])
        return means, scatter.square().mean()

    @torch.no_grad()
    def logits(self, task: str, row: Mapping[str, Any], weights: Tensor) -> Tensor:
        expert = self.experts[task]
        written = {
            f"{expert.base_model_prefix}.{name}": shared
            + sum(w * own[name] for w, own in zip(weights, self.branches, strict=True))
            for name, shared in self.shared.items()
        }
        inputs = inputs_of(self.tokenizer, row)
        return torch.func.functional_call(expert, written, (), inputs).logits[0]  # type: ignore[no-any-return]


def compressed(delta: Tensor) -> Tensor:
    if delta.ndim < 2:
        return delta
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    rank = int((1 - MASK_RATE) * len(s))
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def mixed() -> list[dict[str, Any]]:
    """Rows of all tasks, in turns."""
    each = [rows_of(task)[:3] for task in TASKS]
    return [row for rows in zip(*each, strict=True) for row in rows]


def batch_of(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    encoded = [tokenizer(row["prompt"], row.get("response")) for row in rows]
    return dict(tokenizer.pad(encoded, return_tensors="pt"))


@pytest.mark.parametrize(
    ("kind", "exclude"),
    [("bert", HEADS), ("roberta", HEADS_AND_BIASES), ("deberta", HEADS_AND_BIASES)],
)
def test_a_mixed_batch_is_the_formula_row_by_row(
    kind: str, exclude: Sequence[str], classifiers: Any, labelled: dict[str, str]
) -> None:
    folders, rows = classifiers(kind), mixed()
    reference = Reference(folders, exclude)
    weights = torch.stack([reference.weights(row) for row in rows])
    assert len(weights.argmax(1).unique()) > 1
    merge = load_classifiers(spelled(folders, labelled, exclude))
    for task in TASKS:
        model: Any
        model, tokenizer = merge.for_task(task)
        with torch.no_grad():
            together = model(**batch_of(tokenizer, rows)).logits
            alone = [model(**inputs_of(tokenizer, row)).logits[0] for row in rows]
        assert torch.allclose(together, torch.stack(alone), rtol=0, atol=1e-5)
        for row, weight, found in zip(rows, weights, together, strict=True):
            expected = reference.logits(task, row, weight)
            assert torch.allclose(found.double(), expected, rtol=0, atol=1e-4), (task, row)
        shared = reference.logits(task, rows[0], torch.zeros(len(TASKS)))
        assert not torch.allclose(together[0].double(), shared, atol=1e-3)  # the experts matter


@some_kinds
def test_weights_that_are_held_are_those_of_each_row(kind: str, classifiers: Any) -> None:
    folders, rows = classifiers(kind), mixed()[:4]
    reference = Reference(folders, HEADS)
    weights = torch.tensor([[0.5, 0.3, 0.2], [0, 1.0, 0], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    merge = load_classifiers(spelled(folders, None))
    for task in TASKS:
        model: Any
        model, tokenizer = merge.for_task(task)
        with torch.no_grad(), model.routed(weights):
            together = model(**batch_of(tokenizer, rows), output_hidden_states=True)
        assert together.hidden_states[-1].shape[0] == len(rows)
        for row, weight, found in zip(rows, weights, together.logits, strict=True):
            expected = reference.logits(task, row, weight)
            assert torch.allclose(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_the_router_reads_token_types_where_the_model_does(
    kind: str, classifiers: Any, labelled: dict[str, str]
) -> None:
    folders = classifiers(kind)
    model: Any = load_classifiers(spelled(folders, labelled)).for_task("mnli")[0]
    reference, (row,) = Reference(folders, HEADS), rows_of("mnli")[:1]
    inputs = inputs_of(reference.tokenizer, row)
    assert inputs["token_type_ids"].any()
    other = {**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
    prompts = [{name: one[name][0].tolist() for name in READ} for one in (inputs, other)]
    found = model.routing.weigher.features(prompts)
    for features, one in zip(found, (inputs, other), strict=True):
        assert torch.allclose(features.double(), reference.features(one), atol=1e-5)
    differ = not torch.allclose(found[0], found[1], atol=1e-3)
    assert differ == (kind == "bert")  # DeBERTa-v3 has no types


@some_kinds
def test_an_oracle_gives_each_head_the_expert_of_its_task(kind: str, classifiers: Any) -> None:
    folders = classifiers(kind)
    merge = load_classifiers(spelled(folders, None, router="oracle", mask_rate=0.0))
    for task in TASKS:
        model, tokenizer = merge.for_task(task)
        expert = AutoModelForSequenceClassification.from_pretrained(folders[task])
        batch = batch_of(tokenizer, mixed())
        with torch.no_grad():
            assert torch.allclose(model(**batch).logits, expert(**batch).logits, atol=1e-5)


def test_emr_restores_each_task_under_its_own_head(classifiers: Any) -> None:
    folders, row = classifiers("roberta"), rows_of("mnli")[0]
    reference = Reference(folders, HEADS)
    base = weights_of(AutoModel.from_pretrained(folders["base"]))
    own = [weights_of(expert.base_model) for expert in reference.experts.values()]
    kept, norms = [Weights() for _ in own], torch.zeros(2, len(own), dtype=torch.float64)
    for name in own[0]:
        deltas = torch.stack([each[name] - base[name] for each in own])
        sign = deltas.sum(0).sign()
        elected = sign * (deltas * sign).relu().amax(0)
        for i, delta in enumerate(deltas):
            kept[i][name] = elected * (delta * sign > 0)
            norms[:, i] += torch.stack([delta.abs().sum(), kept[i][name].abs().sum()])
    recipe = spelled(folders, None).as_dict() | {"merge_method": "emr", "parameters": {}}
    merge = load_classifiers(Recipe.from_mapping(recipe))
    for i, task in enumerate(TASKS):
        reference.shared = {n: base[n] + norms[0, i] / norms[1, i] * kept[i][n] for n in own[0]}
        expected = reference.logits(task, row, torch.zeros(len(TASKS)))
        model, tokenizer = merge.for_task(task)
        with torch.no_grad():
            found = model(**inputs_of(tokenizer, row)).logits[0].double()
        assert torch.allclose(found, expected, rtol=0, atol=1e-4)


@some_kinds
def test_what_experts_know_is_in_memory_once(kind: str, classifiers: Any) -> None:
    merge = load_classifiers(spelled(classifiers(kind), None, HEADS_AND_BIASES))
    first, *others = (merge.for_task(task)[0] for task in TASKS)
    held = {name: buffer for name, buffer in first.named_buffers() if "branches" in name}
    assert held
    for other in others:
        buffers = dict(other.named_buffers())
        assert all(buffers[name] is buffer for name, buffer in held.items())


def test_the_encoder_is_routed_whatever_is_above_it(
    classifiers: Any, labelled: dict[str, str]
) -> None:
    folders = classifiers("bert")
    model: Any = load_merged(spelled(folders, labelled), AutoModelForSequenceClassification)
    tokenizer = AutoTokenizer.from_pretrained(folders["base"])
    batch = batch_of(tokenizer, mixed())
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(model.base_model(**batch).last_hidden_state, states)
        head = AutoModelForSequenceClassification.from_pretrained(folders["mnli"])
        pooled = model.base_model(**batch).pooler_output
        expected = head.classifier(pooled)
        head.bert = model.bert
        assert torch.equal(head(**batch).logits, expected)
    with pytest.raises(MergeError, match="call the model or its base model"):
        model.bert.encoder(states)


def test_a_call_that_fails_leaves_no_weights_behind(classifiers: Any) -> None:
    model: Any = load_classifiers(spelled(classifiers("bert"), None)).for_task("cola")[0]
    ids = torch.tensor([[2, 9, 3]])
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10_000]]))
    assert model.routing.current.weights is None
    with torch.no_grad():
        one = model(input_ids=ids).logits
        with model.routed([0.0, 0.0, 0.0]):
            assert not torch.allclose(model(input_ids=ids).logits, one)
        assert torch.equal(model(input_ids=ids).logits, one)


@pytest.mark.parametrize("kind", ["roberta", "deberta"])
def test_a_merge_for_one_task_is_the_model_of_that_task(
    kind: str, classifiers: Any, labelled: dict[str, str]
) -> None:
    recipe = spelled(classifiers(kind), labelled)
    model, tokenizer = load_classifiers(recipe).for_task("mnli")
    alone = load_merged(recipe.for_task("mnli"), AutoModelForSequenceClassification)
    batch = batch_of(tokenizer, mixed())
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, alone(**batch).logits, atol=1e-6)
