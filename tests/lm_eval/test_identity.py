"""No merge is ever taken for another: what is recorded, and what caches are keyed by."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import harness_adapters.lm_eval
from harness_adapters.lm_eval import MergedLM
from merge_plugins import Recipe
from merge_plugins._version import __version__
from merge_plugins.identity import digest, label, model_identity


def test_results_carry_the_whole_recipe_and_its_sources(evaluate, family, tmp_path):
    file = tmp_path / "merge.json"
    models = [{"model": ref, "parameters": {"weight": 0.5}} for ref in (family.math, family.code)]
    recipe = {"merge_method": "linear", "models": models, "base_model": family.base, "seed": 3}
    file.write_text(json.dumps(recipe))
    found = evaluate("merged", {"config": str(file)}, limit=1).results["config"]
    assert found["merge"] == {
        "recipe": Recipe.load(file).as_dict(),
        "digest": digest(Recipe.load(file)),
        "sources": {ref: model_identity(ref) for ref in Recipe.load(file).references},
        "merge_plugins": __version__,
    }
    assert digest(Recipe.from_mapping(found["merge"]["recipe"])) == found["merge"]["digest"]
    assert found["model_sha"] == found["merge"]["digest"]
    json.dumps(found["merge"])


def test_results_carry_the_weights_a_method_found(evaluate, family, tmp_path):
    file = tmp_path / "examples.jsonl"
    file.write_text('{"input": "2 + 3 =", "output": "5"}\n')
    arguments = {"method": "cocktail", "models": f"{family.math}+{family.code}", "data": str(file)}
    found = evaluate("merged", arguments, limit=1).results["config"]["merge"]
    assert "parameters" not in found["recipe"]  # no argument of the harness is taken for one
    found = found["settled"]
    weights = found["parameters"]["weight"]
    assert found["merge_method"] == "linear"
    assert 0 < min(weights) < max(weights) < 1 == pytest.approx(sum(weights))


def test_the_callers_arguments_are_named_afresh_at_each_run(evaluate, family):
    arguments = family.recipe()
    evaluate("merged", arguments, limit=1)
    first = arguments["model"]
    arguments["models"] = f"{family.math}:0.9+{family.code}:0.1"
    evaluate("merged", arguments, limit=1)
    assert arguments["model"] != first


@pytest.fixture
def asked(monkeypatch):
    """How many requests reached a model since the last look."""
    counts = []
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        original = getattr(MergedLM, kind)

        def counting(self, requests, *args, _original=original, **kwargs):
            counts.append(len(requests))
            return _original(self, requests, *args, **kwargs)

        monkeypatch.setattr(harness_adapters.lm_eval.MergedLM, kind, counting)

    def look() -> int:
        total = sum(counts)
        counts.clear()
        return total

    return look


def test_use_cache_never_answers_for_another_merge(evaluate, family, tmp_path, asked):
    one, other = family.recipe(), family.recipe(models=f"{family.math}:0.9+{family.code}:0.1")
    right = {id(recipe): evaluate("merged", dict(recipe)).answers for recipe in (one, other)}
    n_requests, _ = asked() // 2, asked()
    cache = {"use_cache": str(tmp_path / "cache")}
    for recipe, n_new in [(one, n_requests), (other, n_requests), (one, 0), (other, 0)]:
        assert evaluate("merged", dict(recipe), **cache).answers == right[id(recipe)]
        assert asked() == n_new


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"model": "linear-0123456789ab"}, True),
        ({"max_batch_size": 2}, True),
        ({"parallelize": True}, True),
        ({"dtype": "auto"}, True),  # the default
        ({"dtype": "bfloat16"}, False),
        ({"add_bos_token": False}, False),
        ({"max_length": 32}, False),
        ({"think_end_token": 40}, False),
        ({"seed": 1}, False),
    ],
)
def test_use_cache_is_shared_where_the_answers_are(
    evaluate, family, tmp_path, asked, change, shared
):
    quick = {"use_cache": str(tmp_path / "cache"), "limit": 1, "tasks": ["tiny_choice"]}
    evaluate("merged", family.recipe(), **quick)
    asked()
    evaluate("merged", family.recipe(**change), **quick)
    assert (asked() == 0) == shared


def test_a_changed_source_is_another_merge(family, tmp_path):
    labels = []
    for change in (0.0, 0.5):
        folder = tmp_path / str(change)
        folder.mkdir()
        for file in ("config.json", "generation_config.json"):
            (folder / file).write_bytes((family.root / "math" / file).read_bytes())
        weights = load_file(family.root / "math" / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"] + change
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        models = [{"model": str(folder)}, {"model": family.code}]
        recipe = {"merge_method": "linear", "base_model": family.base, "models": models}
        labels.append(label(Recipe.from_mapping(recipe)))
    assert labels[0] != labels[1]


def test_prompts_are_cached_by_what_the_tokenizer_does(family, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(family.base)
    names = set()
    for template in (tokenizer.chat_template, "{{ messages }}"):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        recipe = family.recipe(tokenizer=str(tmp_path / "tokenizer"))
        names.add(MergedLM(**recipe, device="cpu").tokenizer_name)
    assert len(names) == 2


def test_the_live_model_is_the_merge_and_not_the_base(family, saved):
    lm = MergedLM(**family.recipe(), device="cpu")
    stored = load_file(f"{saved}/model.safetensors")
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, stored.get(name, weight)), name
    assert set(stored) <= set(lm.model.state_dict())
