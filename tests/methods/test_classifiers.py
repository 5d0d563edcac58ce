"""Methods of the GLUE tables on classifiers with heads apart, one model or two, by the formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from text_classifiers import KINDS, inputs_of, rows_of
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from merge_plugins import Recipe, load_classifiers, open_merge

Weights = dict[str, Tensor]
PAIR = ("mnli", "stsb")
"""Three labels, and a number to predict."""
RATE = 0.6
pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")
counts = pytest.mark.parametrize("tasks", [PAIR, PAIR[:1]], ids=["two models", "one model"])


def spelled(
    folders: Mapping[str, str],
    tasks: Sequence[str],
    method: str,
    data: Mapping[str, str] | None = None,
    **given: Any,
) -> Recipe:
    models = [
        {"model": folders[task], "task": task, **({"data": data[task]} if data else {})}
        for task in tasks
    ]
    recipe = {"merge_method": method, "base_model": folders["base"], "models": models}
    return Recipe.from_mapping({**recipe, "parameters": given})


def merged(recipe: Recipe) -> Weights:
    """Merge what is below the heads."""
    merge = open_merge(recipe)
    heads = {name for name, t in merge.plan.tensors.items() if t.kernel is None}
    return {n: t[...] for n, t in merge.tensors().items() if n not in heads}


def below_the_heads(folders: Mapping[str, str], tasks: Sequence[str]) -> list[Weights]:
    """Weights of base and experts, as transformers loads them, by names of the experts."""
    load = AutoModelForSequenceClassification.from_pretrained
    models = [load(folders[name]) for name in ("base", *tasks)]
    start = f"{models[0].base_model_prefix}."
    return [
        {n: w.detach() for n, w in model.named_parameters() if n.startswith(start)}
        for model in models
    ]


# The formulas, on vectors: task vectors [N, d] in float64.


def ties(deltas: Tensor, rate: float) -> Tensor:
    k = int(rate * deltas.shape[1])
    kth = deltas.abs().kthvalue(k, dim=1, keepdim=True).values
    trimmed = deltas * (deltas.abs() >= kth)
    sign = trimmed.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agreeing = (trimmed.sign() == sign) & (trimmed != 0)
    return (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)  # type: ignore[no-any-return]


def smallest_dropped(x: Tensor, rate: float) -> Tensor:
    kth = x.abs().flatten().kthvalue(int(rate * x.numel())).values
    return x * (x.abs() > kth)


def each(
    function: Callable[[Tensor, Tensor], Tensor], base: Weights, experts: Sequence[Weights]
) -> Weights:
    """Apply a function to (base [d], experts [N, d]) of every tensor."""
    found = {}
    for name, weight in base.items():
        stack = torch.stack([expert[name].flatten() for expert in experts])
        found[name] = function(weight.flatten(), stack).view_as(weight)
    return found


def deltas(base: Tensor, experts: Tensor) -> Tensor:
    return (experts.float() - base.float()).double()  # rounded as what is ranked


def of_model(base: Weights, experts: Sequence[Weights]) -> Weights:
    """TIES with one threshold and one majority for the whole model."""
    flat = torch.cat([weight.flatten() for weight in base.values()])
    stack = torch.stack([torch.cat([e[name].flatten() for name in base]) for e in experts])
    whole = flat + ties(deltas(flat, stack), 0.8)
    parts = whole.split([weight.numel() for weight in base.values()])
    return {n: p.view_as(w) for (n, w), p in zip(base.items(), parts, strict=True)}


Formula = Callable[[Tensor, Tensor], Tensor]
FORMULAS: Mapping[str, tuple[dict[str, Any], Formula]] = {
    "average": ({"method": "average_merging"}, lambda b, e: e.mean(0)),
    "task arithmetic": (
        {"method": "task_arithmetic", "scaling_coefficient": 0.7},
        lambda b, e: b + 0.7 * deltas(b, e).sum(0),
    ),
    "ties": (
        {"method": "ties_merging", "param_value_mask_rate": 0.7, "scaling_coefficient": 0.9},
        lambda b, e: b + 0.9 * ties(deltas(b, e), 0.7),
    ),
    "magnitude": (
        {"method": "mask_merging", "mask_strategy": "magnitude", "weight_mask_rate": RATE},
        lambda b, e: b + torch.stack([smallest_dropped(d, RATE) for d in deltas(b, e)]).mean(0),
    ),
    "magnitude of fine-tuned weights": (
        {
            "method": "mask_merging",
            "mask_strategy": "magnitude",
            "weight_mask_rate": RATE,
            "weight_format": "finetuned_weight",
            "use_weight_rescale": True,
        },
        lambda b, e: torch.stack([smallest_dropped(x, RATE) for x in e]).mean(0) / (1 - RATE),
    ),
}


def check(recipe: Recipe, expected: Weights, tolerance: float = 1e-6) -> None:
    """Compare every merged weight, and the answers of every task through its own head."""
    found = merged(recipe)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(found[name].double(), weight.double(), rtol=0, atol=tolerance), name
    merge = load_classifiers(recipe)
    for task, entry in recipe.tasks.items():
        model, tokenizer = merge.for_task(task)
        expert = AutoModelForSequenceClassification.from_pretrained(str(entry.ref)).eval().double()
        written = {name: weight.double() for name, weight in expected.items()}
        for row in rows_of(task)[:2]:
            inputs = inputs_of(tokenizer, row)
            with torch.no_grad():
                logits = torch.func.functional_call(expert, written, (), inputs).logits
                assert torch.allclose(model(**inputs).logits.double(), logits, atol=1e-4), task


def by_turns(names: Mapping[str, Any]) -> Any:
    """Try each name on one kind of model, and every kind with some name."""
    pairs = [*zip(names, itertools.cycle(KINDS), strict=False)]
    return pytest.mark.parametrize(("name", "kind"), pairs)


@counts
@by_turns(FORMULAS)
def test_a_method_is_its_formula_below_the_heads(
    name: str, kind: str, tasks: Sequence[str], classifiers: Any
) -> None:
    keys, formula = FORMULAS[name]
    base, *own = below_the_heads(classifiers(kind), tasks)
    expected = each(formula, base, own)
    check(spelled(classifiers(kind), tasks, **keys), expected)


@counts
def test_ties_over_the_model_ranks_no_head(tasks: Sequence[str], classifiers: Any) -> None:
    base, *own = below_the_heads(classifiers("roberta"), tasks)
    recipe = spelled(classifiers("roberta"), tasks, "ties_merging", trim_scope="model")
    check(recipe, of_model(base, own))


# DARE: which entries are dropped is drawn, and is the same whatever merges the rest.


def masked_pair(folders: Mapping[str, str], **given: Any) -> list[Weights]:
    """Find both masked models: the first from a merge of it alone, the second from the average."""
    base, *_ = below_the_heads(folders, ())
    first = merged(spelled(folders, PAIR[:1], "mask_merging", **given))
    average = merged(spelled(folders, PAIR, "mask_merging", **given))
    double = {}
    for name, weight in base.items():
        double[name] = 2 * average[name].double() - first[name].double()
        dropped = torch.isclose(double[name], weight.double(), rtol=0, atol=1e-6)
        double[name][dropped] = weight.double()[dropped]  # exactly, so that no sign is elected
    return [{name: weight.double() for name, weight in first.items()}, double]


DARE = {"weight_mask_rate": RATE, "use_weight_rescale": True}
DROPS: Mapping[str, dict[str, Any]] = {
    "DARE": DARE,
    "DropOnly": {"weight_mask_rate": RATE},
    "fine-tuned weights": {**DARE, "weight_format": "finetuned_weight"},
}


@by_turns(DROPS)
def test_entries_are_dropped_or_rescaled(name: str, kind: str, classifiers: Any) -> None:
    given = DROPS[name]
    base, *own = below_the_heads(classifiers(kind), PAIR)
    factor = 1 / (1 - RATE) if "use_weight_rescale" in given else 1.0
    for expert, found in zip(own, masked_pair(classifiers(kind), **given), strict=True):
        dropped, total = 0, 0
        for tensor, weight in found.items():
            origin = base[tensor] if "weight_format" not in given else torch.zeros(())
            whole, kept = (expert[tensor] - origin).double(), weight - origin
            is_kept = torch.isclose(kept, factor * whole, rtol=0, atol=1e-5)
            assert (is_kept | (kept.abs() <= 1e-5)).all(), tensor
            dropped, total = dropped + int((~is_kept).sum()), total + whole.numel()
        assert abs(dropped / total - RATE) < 0.05


INNER: Mapping[str, tuple[dict[str, Any], Formula]] = {
    "task_arithmetic": FORMULAS["task arithmetic"],
    "ties_merging": FORMULAS["ties"],
}


@pytest.mark.parametrize("inner", INNER)
def test_dare_merges_the_masked_models_by_the_inner_method(inner: str, classifiers: Any) -> None:
    keys, formula = INNER[inner]
    base, *_ = below_the_heads(classifiers("bert"), ())
    expected = each(formula, base, masked_pair(classifiers("bert"), **DARE))
    own = {name: value for name, value in keys.items() if name != "method"}
    recipe = spelled(
        classifiers("bert"), PAIR, "mask_merging", **DARE, mask_apply_method=inner, **own
    )
    check(recipe, expected, 1e-5)


@pytest.mark.parametrize("inner", ["fisher_merging", "regmean_merging"])
def test_dare_weighs_masked_models_by_the_statistics_of_the_models(
    inner: str, classifiers: Any, labelled: dict[str, str]
) -> None:
    name = {"fisher_merging": "fisher", "regmean_merging": "gram"}[inner]
    folders, models = classifiers("roberta"), masked_pair(classifiers("roberta"), **DARE)
    recipe = spelled(folders, PAIR, "mask_merging", labelled, **DARE, mask_apply_method=inner)
    sources = open_merge(spelled(folders, PAIR, inner, labelled)).sources
    known = [sources.stat(name, i) for i in range(2)]
    expected = {}
    for weight in models[0]:
        own = [model[weight] for model in models]
        expected[weight] = (own[0] + own[1]) / 2
        if name == "fisher":
            share = [(stat[weight] + 1e-6).double() for stat in known]
            expected[weight] = sum(f * w for f, w in zip(share, own, strict=True)) / sum(share)
        elif weight in known[0]:
            grams = [0.9 * s[weight] + 0.1 * s[weight].diagonal().diag() for s in known]
            left = [gram.double() for gram in grams]
            right = sum(g @ w.T for g, w in zip(left, own, strict=True))
            expected[weight] = torch.linalg.solve(left[0] + left[1], right).T
    check(recipe, expected, 1e-4)
