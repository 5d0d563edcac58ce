"""`SentenceTransformer.merge` and `CrossEncoder.merge` of release 6.2, and ours: the same weights.

Theirs runs mergekit on whole models in memory. Random methods agree where nothing is dropped, and
where something is, on the values that an element may have.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from embedders import embedder
from families import drift, word_tokenizer, write_family
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from merge_plugins import Recipe, load_embedder, load_reranker

if os.environ.get("REQUIRE_MERGEKIT"):
    import mergekit  # noqa: F401
else:
    pytest.importorskip("mergekit")

pytestmark = pytest.mark.filterwarnings("ignore")  # what mergekit warns of is not ours to mend

WEIGHT = {"weight": [0.7, 0.4]}
HALF = {"density": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "linear": WEIGHT,
    "slerp": {"t": 0.3},
    "nuslerp": WEIGHT,
    "multislerp": WEIGHT,
    "karcher": {},
    "task_arithmetic": {**WEIGHT, "lambda": 0.8},
    "ties": {**WEIGHT, **HALF},
    "dare_ties": WEIGHT,
    "dare_linear": WEIGHT,
    "breadcrumbs": {**WEIGHT, "density": 0.8, "gamma": 0.1},
    "breadcrumbs_ties": {**WEIGHT, "density": 0.8, "gamma": 0.1},
    "model_stock": {},
    "sce": {"select_topk": 0.5},
    "nearswap": {"t": 0.01},
    "arcee_fusion": {},
    "ram": {},
    "ramplus_tl": {},
}
WITHOUT_BASE = ("linear", "nuslerp", "multislerp", "karcher")
ONE_EXPERT = ("slerp", "nearswap", "arcee_fusion")
SHAPE: dict[str, int] = {
    "vocab_size": 54,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base and two experts, each with a projection."""
    return [
        embedder(folder, ("mean", "normalize"), dense=i)
        for i, folder in enumerate(written(BertModel(BertConfig(**SHAPE)), tmp_path_factory))
    ]


def written(model: Any, factory: pytest.TempPathFactory) -> list[str]:
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "?", *map(str, range(50))]
    tokenizer = word_tokenizer(words, unknown="?", eos_token="</s>", pad_token="<pad>")
    drift(model, 0.2)  # biases of zero would hide much
    return [*write_family(model, factory.mktemp("m"), spread=0.1, tokenizer=tokenizer).values()]


def theirs(model_class: Any, method: str, models: list[str], **parameters: Any) -> dict[str, Any]:
    base, *experts = models
    given: dict[str, Any] = {"parameters": parameters, "device": "cpu"}
    if method in ONE_EXPERT:
        experts = [base, experts[0]]
    if method not in WITHOUT_BASE:
        given["base_model"] = base
    return dict(model_class.merge(experts, method, **given).state_dict())


def ours(load: Any, method: str, models: list[str], **parameters: Any) -> dict[str, Any]:
    base, *experts = models
    each = parameters.pop("weight", None)
    plain: dict[str, Any] = {"merge_method": method, "parameters": parameters}
    plain["models"] = [
        {"model": expert, "parameters": {"weight": each[i]} if each else {}}
        for i, expert in enumerate(experts[: 1 if method in ONE_EXPERT else None])
    ]
    if method not in WITHOUT_BASE:
        plain["base_model"] = base
    return dict(load(Recipe.from_mapping(plain), device="cpu").state_dict())


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_has_the_weights_of_sentence_transformers(method: str, models: list[str]) -> None:
    expected = theirs(SentenceTransformer, method, models, **METHODS[method])
    found = ours(load_embedder, method, models, **METHODS[method])
    assert "2.linear.weight" in expected
    assert_same(found, expected)
    assert not torch.equal(expected["2.linear.weight"], ours_of(models[1])["2.linear.weight"])


def ours_of(model: str) -> dict[str, Any]:
    return dict(SentenceTransformer(model, device="cpu").state_dict())


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_what_is_dropped_at_random_is_as_much_and_rescaled_alike(
    method: str, models: list[str]
) -> None:
    given = {"density": 0.5, **({"epsilon": 0.2} if method.startswith("della") else {})}
    base, expert = (ours_of(model) for model in models[:2])
    merges = [
        theirs(SentenceTransformer, method, models, weight=[1.0, 0.0], **given),
        ours(load_embedder, method, models, weight=[1.0, 0.0], **given),
    ]
    name = "0.model.embeddings.word_embeddings.weight"
    kept, sizes = [], []
    for merge in merges:
        change, delta = merge[name] - base[name], expert[name] - base[name]
        is_kept = change.abs() > 1e-7
        kept.append(float(is_kept.float().mean()))
        sizes.append(float((change / delta)[is_kept].median()))
    assert kept[0] == pytest.approx(kept[1], abs=0.08)  # of 864 elements
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_a_reranker_too(method: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = BertForSequenceClassification(BertConfig(**SHAPE, num_labels=1))
    folders = written(model, tmp_path_factory)
    expected = theirs(CrossEncoder, method, folders, **METHODS[method])
    found = ours(load_reranker, method, folders, **METHODS[method])
    assert "classifier.weight" in {name.removeprefix("0.model.") for name in expected}
    assert_same(found, expected)
