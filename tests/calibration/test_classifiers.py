"""Fisher and RegMean of classifiers of several tasks, against a plain transcription in float64.

The reference reads every row alone, so that nothing is padded, through the model that transformers
loads, and merges what is below the heads; each task keeps its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from text_classifiers import KINDS, inputs_of, rows_of
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from merge_plugins import Recipe, load_classifiers, merged_tensors
from merge_plugins.folders import cache_folder

Weights = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")
kinds = pytest.mark.parametrize("kind", KINDS)
PAIR = ("mnli", "stsb")
"""Three labels, and a number to predict."""


def merging(
    method: str,
    folders: Mapping[str, str],
    data: Mapping[str, str],
    tasks: Sequence[str],
    **given: Any,
) -> Recipe:
    """Spell a recipe; rows are read in batches of 4."""
    models = [
        {"model": folders[task], "task": task, "data": {"path": data[task], "batch_size": 4}}
        for task in tasks
    ]
    keys = {key: given.pop(key) for key in ("base_model", "exclude") if key in given}
    return Recipe.from_mapping(
        {"merge_method": method, "models": models, "parameters": given, **keys}
    )


def live(folder: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval().double()


def shared(model: Any) -> Weights:
    """Copy the weights below the head."""
    start = f"{model.base_model_prefix}."
    return {n: w.detach().clone() for n, w in model.named_parameters() if n.startswith(start)}


def squares(model: Any, scalar: Tensor) -> Weights:
    model.zero_grad()
    scalar.backward(retain_graph=True)
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.square()
        for name, weight in model.named_parameters()
    }


def added(total: Weights, more: Weights, factor: float = 1.0) -> None:
    for name, weight in more.items():
        total[name] = total.get(name, 0) + factor * weight


def fisher_of(folder: str, task: str) -> Weights:
    """Matena & Raffel, eq. 5: the expectation over the model's own answers, row by row."""
    model, tokenizer, total = live(folder), AutoTokenizer.from_pretrained(folder), Weights()
    rows = rows_of(task)
    for row in rows:
        logits = model(**inputs_of(tokenizer, row)).logits[0]
        if len(logits) == 1:  # a Gaussian of variance 1 around the number
            added(total, squares(model, logits.sum()))
        else:
            log_p = logits.log_softmax(-1)
            for one in log_p:
                added(total, squares(model, one), float(one.detach().exp()))
    return {name: weight / len(rows) for name, weight in total.items()}


def fisher_of_batches(folder: str, task: str) -> Weights:
    """MergeLM's code: the square of the gradient of a batch's sum, or of its mean squared error."""
    model, tokenizer, total = live(folder), AutoTokenizer.from_pretrained(folder), Weights()
    rows = rows_of(task)
    for start in range(0, len(rows), 4):
        batch, scalar = rows[start : start + 4], torch.zeros((), dtype=torch.float64)
        for row in batch:
            logits = model(**inputs_of(tokenizer, row)).logits[0]
            if len(logits) == 1:
                scalar = scalar + (logits[0] - row["label"]).square() / len(batch)
            else:
                log_p = logits.log_softmax(-1)
                scalar = scalar + (log_p.exp().detach().sqrt() * log_p).sum()
        added(total, squares(model, scalar))
    return {name: weight / len(rows) for name, weight in total.items()}


def grams_of(folder: str, task: str) -> Weights:
    """Mean of x xᵀ over all inputs of every linear layer."""
    model, tokenizer = live(folder), AutoTokenizer.from_pretrained(folder)
    sums, counts = Weights(), dict[str, int]()

    def note(name: str, x: Tensor) -> None:
        x = x.detach().flatten(0, -2)
        sums[name] = sums.get(name, 0) + x.T @ x
        counts[name] = counts.get(name, 0) + len(x)

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            own = functools.partial(note, f"{name}.weight")
            layer.register_forward_pre_hook(lambda _, inputs, own=own: own(inputs[0]))
    for row in rows_of(task):
        model(**inputs_of(tokenizer, row))
    return {name: total / counts[name] for name, total in sums.items()}


def close(one: Tensor, other: Tensor, rtol: float) -> bool:
    """Whether tensors agree up to float32 noise relative to their largest entry."""
    assert one.shape == other.shape
    return bool((one.double() - other).abs().max() <= rtol * other.abs().max().clamp(min=1e-12))


def agree(found: Recipe, expected: Weights, rtol: float) -> None:
    """Check every merged weight, and that every task answers by them through its own head."""
    tensors = merged_tensors(found)
    for name, weight in expected.items():
        assert close(tensors[name][...], weight, rtol), name
    merge = load_classifiers(found)
    for task, entry in found.tasks.items():
        model, tokenizer = merge.for_task(task)
        alone = live(str(entry.ref))
        for row in rows_of(task)[:2]:
            inputs = inputs_of(tokenizer, row)
            with torch.no_grad():
                logits = torch.func.functional_call(alone, expected, (), inputs).logits
                assert torch.allclose(model(**inputs).logits.double(), logits, atol=1e-4), task


@kinds
@pytest.mark.parametrize("fisher", ["per_example", "mergelm"])
def test_fisher_merging_is_the_formula_in_float64(
    kind: str, fisher: str, classifiers: Any, labelled: dict[str, str]
) -> None:
    folders, epsilon = classifiers(kind), 1e-5
    of = fisher_of if fisher == "per_example" else fisher_of_batches
    weights = [shared(live(folders[task])) for task in PAIR]
    information = [of(folders[task], task) for task in PAIR]
    norms = [
        torch.stack([own[name].square().sum() for name in weights[0]]).sum().sqrt()
        for own in information
    ]
    normalized = 1 / (torch.stack(norms) + epsilon)
    for normalize, importance in ((False, torch.ones(2)), (True, normalized)):
        expected = {}
        for name in weights[0]:
            parts = [c * (f[name] + epsilon) for c, f in zip(importance, information, strict=True)]
            total = sum(p * w[name] for p, w in zip(parts, weights, strict=True))
            expected[name] = total / sum(parts)
        given = {"fisher": fisher, "normalize_fisher_weight": normalize}
        given["minimal_fisher_weight"] = epsilon
        agree(merging("fisher_merging", folders, labelled, PAIR, **given), expected, 2e-5)


@kinds
def test_regmean_is_the_formula_in_float64(
    kind: str, classifiers: Any, labelled: dict[str, str]
) -> None:
    folders, alpha = classifiers(kind), 0.8
    recipe = merging("regmean_merging", folders, labelled, PAIR, reduce_non_diagonal_ratio=alpha)
    weights = [shared(live(folders[task])) for task in PAIR]
    grams = [grams_of(folders[task], task) for task in PAIR]
    expected = {}
    for name in weights[0]:
        own = [weight[name] for weight in weights]
        expected[name] = (own[0] + own[1]) / 2
        if name in grams[0]:
            left = [alpha * g[name] + (1 - alpha) * g[name].diagonal().diag() for g in grams]
            right = sum(g @ w.T for g, w in zip(left, own, strict=True))
            expected[name] = (torch.linalg.inv(left[0] + left[1]) @ right).T
    assert any("query" in name for name in grams[0])
    agree(recipe, expected, 1e-4)


@pytest.mark.parametrize("method", ["fisher_merging", "regmean_merging"])
def test_one_model_alone_is_itself(method: str, classifiers: Any, labelled: dict[str, str]) -> None:
    folders = classifiers("bert")
    recipe = merging(method, folders, labelled, ["mnli"])
    agree(recipe, shared(live(folders["mnli"])), 1e-5)


@pytest.mark.parametrize("inner", ["fisher_merging", "regmean_merging"])
@pytest.mark.parametrize("tasks", [("cola", "rte"), ("cola",)], ids="+".join)
def test_a_mask_that_drops_nothing_changes_nothing(
    inner: str, tasks: tuple[str, ...], classifiers: Any, labelled: dict[str, str]
) -> None:
    folders = classifiers("roberta")
    given = {"mask_apply_method": inner, "weight_mask_rate": 0.0, "base_model": folders["base"]}
    masked = merged_tensors(merging("mask_merging", folders, labelled, tasks, **given))
    plain = merged_tensors(merging(inner, folders, labelled, tasks))
    for name, tensor in plain.items():
        assert close(masked[name][...], tensor[...].double(), 1e-4), name


def test_a_statistic_is_computed_once_per_expert_and_not_per_pair(
    classifiers: Any, labelled: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folders, tasks = classifiers("bert"), ("cola", "mnli", "stsb")
    for pair in itertools.permutations(tasks, 2):
        for given in ({}, {"base_model": folders["base"]}):  # stored in another layout
            recipe = merging("fisher_merging", folders, labelled, pair, **given)
            name = next(name for name in merged_tensors(recipe) if "LayerNorm.bias" in name)
            merged_tensors(recipe)[name][...]
    assert len(list(cache_folder().glob("statistics/fisher-*"))) == len(tasks)
    assert capsys.readouterr().err.count("One backward pass per example") == len(tasks)
