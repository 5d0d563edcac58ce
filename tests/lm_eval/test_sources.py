"""Models that are computed from others, and companions of choice, score as if they were saved."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from harness_adapters.lm_eval import MergedLM
from merge_plugins import Recipe, identity, save

BRIEF = "{% for m in messages %}{{ m.content }}?{% endfor %}"


@pytest.fixture
def adapter(family, tmp_path) -> str:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(family.base)
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=4, init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.fixture
def recipe(family, adapter, tmp_path) -> Path:
    """A merge of a merge, written in a file of its own, and of an adapter."""
    inner = {"merge_method": "slerp", "base_model": family.math, "models": [family.code]}
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump({**inner, "parameters": {"t": 0.4}}))
    outer = {
        "merge_method": "ties",
        "base_model": family.base,
        "models": ["inner.yaml", {"model": {"model": family.base, "lora": adapter}}],
        "parameters": {"weight": 0.8, "density": 0.6},
        "tokenizer_source": "union",
        "chat_template": BRIEF,
        "generation_config": family.code,
    }
    (tmp_path / "outer.yaml").write_text(yaml.safe_dump(outer))
    return tmp_path / "outer.yaml"


def test_a_merge_of_a_merge_and_an_adapter_scores_as_if_saved(evaluate, recipe, tmp_path):
    saved = str(save(Recipe.load(recipe), tmp_path / "saved"))
    words = {"apply_chat_template": True, "batch_size": 4}
    merged = evaluate("merged", {"config": str(recipe)}, **words)
    hf = evaluate("hf", {"pretrained": saved}, **words)
    assert merged.answers == hf.answers
    assert merged.scores == hf.scores


def test_the_short_form_takes_a_merge_and_an_adapter(evaluate, family, adapter, recipe):
    inner = recipe.with_name("inner.yaml")
    models = f"models={inner}:0.5+{family.base}++{adapter}:0.5"
    arguments = f"method=linear,{models},chat_template=chatml"
    found = evaluate("merged", arguments, tasks=["tiny_choice"])
    merge = found.results["config"]["merge"]
    inner_digest = identity.digest(Recipe.load(inner))
    assert inner_digest in merge["sources"].values()
    assert merge["recipe"]["models"][1]["model"] == f"{family.base}+{adapter}"


def test_the_harness_uses_the_tokenizer_of_the_recipe_unless_told(family, recipe, tmp_path):
    ours = MergedLM(config=str(recipe), device="cpu")
    assert ours.tokenizer.chat_template == BRIEF
    assert ours.model.generation_config.repetition_penalty == pytest.approx(1.3)
    told = MergedLM(config=str(recipe), device="cpu", tokenizer=family.math)
    assert told.tokenizer.chat_template != BRIEF
    merge = json.loads(json.dumps(ours.get_model_info()["merge"]))
    assert merge["digest"] == identity.digest(Recipe.load(recipe))
