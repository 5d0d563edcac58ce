"""Tokenizer, chat template and generation config: each from the model the recipe names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from merge_plugins import Recipe, identity, load_merged, save
from merge_plugins.errors import MergeWarning, RecipeError
from merge_plugins.recipe import Delta, Lora, Rebased
from merge_plugins.recipe.chat_templates import TEMPLATES
from merge_plugins.tokenizer import chat_template, generation_config, tokenizer_folder
from merge_plugins.tokenizer.build import template_of

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
TOP_K = {"base": 10, "math": 20, "code": 30}
RENDERED = {
    "alpaca": (
        "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
        "### Instruction:\nBye\n\n### Response:\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "exaone": (
        "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
        "[|user|]Bye\n[|assistant|]"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] Be kind.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
}


@pytest.fixture
def models(llamas: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    """The Llamas, copied, with generation configs of their own; two of three have a template."""
    found = {}
    for name, template in (("base", None), ("math", "MATH {{ messages }}"), ("code", "CODE")):
        folder = tmp_path / name
        shutil.copytree(llamas[name], folder)
        (folder / "generation_config.json").write_text(json.dumps({"top_k": TOP_K[name]}))
        if name == "math":
            (folder / "chat_template.jinja").write_text(str(template))
        elif template:
            held = json.loads((folder / "tokenizer_config.json").read_text())
            held["chat_template"] = [{"name": "default", "template": template}]
            (folder / "tokenizer_config.json").write_text(json.dumps(held))
        found[name] = str(folder)
    return found


def merge(models: Mapping[str, str], **top: Any) -> Recipe:
    held = {
        "merge_method": "task_arithmetic",
        "base_model": models["base"],
        "models": [{"model": models["math"]}, {"model": models["code"]}],
        "parameters": {"weight": 0.5},
    }
    return Recipe.from_mapping({**held, **top})


def test_all_three_are_the_donors_unless_the_recipe_says_so(models: dict[str, str]) -> None:
    recipe = merge(models)
    assert tokenizer_folder(recipe) == Path(models["base"])
    assert chat_template(recipe) is None
    assert generation_config(recipe) == {"top_k": 10}
    assert merge(models, generation_config=models["base"]) == recipe


def test_each_is_chosen_alone_live_and_saved(models: dict[str, str], tmp_path: Path) -> None:
    recipe = merge(models, generation_config=models["code"], chat_template=models["math"])
    live, folder = load_merged(recipe), save(recipe, tmp_path / "saved")
    assert live.generation_config.top_k == 30
    assert json.loads((folder / "generation_config.json").read_text()) == {"top_k": 30}
    for chosen in (folder, tokenizer_folder(recipe)):
        assert AutoTokenizer.from_pretrained(chosen).chat_template == "MATH {{ messages }}"
    again = Recipe.load(folder)
    assert again == recipe
    assert identity.digest(again) == identity.digest(recipe)
    swapped = merge(models, generation_config=models["math"], chat_template=models["code"])
    assert template_of(swapped) == "CODE"
    assert identity.digest(swapped) != identity.digest(recipe)
    assert identity.digest(merge(models)) not in (identity.digest(recipe), identity.digest(swapped))


def test_the_template_of_most_models_wins_and_a_tie_the_first(models: dict[str, str]) -> None:
    assert chat_template(merge(models, chat_template="auto")) == "MATH {{ messages }}"
    shutil.copy(Path(models["code"], "tokenizer_config.json"), models["base"])
    assert chat_template(merge(models, chat_template="auto")) == "CODE"


def test_without_any_template_auto_is_none_and_a_model_is_refused(
    llamas: Mapping[str, str],
) -> None:
    with pytest.warns(MergeWarning, match="auto: none of the models has a template"):
        assert chat_template(merge(llamas, chat_template="auto")) is None
    with pytest.raises(RecipeError, match=r"base has none; write auto, alpaca, chatml, .*"):
        chat_template(merge(llamas, chat_template=llamas["base"]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_known_template_writes_its_format(name: str, models: dict[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(merge(models, chat_template=name)))
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    words = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(TURNS, **words) == RENDERED[name]


def test_a_template_may_stand_in_the_recipe(models: dict[str, str]) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{% endfor %}"
    recipe = merge(models, chat_template=template)
    assert template_of(recipe) == template
    assert Recipe.from_mapping(recipe.as_dict()) == recipe


def test_the_short_form_says_the_same(models: dict[str, str]) -> None:
    short = {
        "method": "task_arithmetic",
        "base": models["base"],
        "models": f"{models['math']}:0.5+{models['code']}:0.5",
        "chat_template": "chatml",
        "generation_config": models["code"],
        "tokenizer_source": "union",
    }
    long = {key: short[key] for key in ("chat_template", "generation_config", "tokenizer_source")}
    assert Recipe.from_model_args(short) == merge(models, **long)


def test_a_computed_model_has_the_companions_of_what_it_is_made_of(
    models: dict[str, str], tmp_path: Path
) -> None:
    base, math, code = (models[name] for name in ("base", "math", "code"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert tokenizer_folder(Lora(base, str(adapter))) == Path(base)
    shutil.copy(Path(math, "tokenizer.json"), adapter)  # trained with tokens of its own
    assert tokenizer_folder(Lora(base, str(adapter))) == adapter
    assert tokenizer_folder(Delta(base, math)) == Path(math)
    assert tokenizer_folder(Rebased(code, base)) == Path(code)
    assert generation_config(Delta(base, math)) == {"top_k": 20}
    inner = merge(models, chat_template="chatml", generation_config=code)
    outer = Recipe.from_mapping(
        {"merge_method": "passthrough", "models": [{"model": inner.as_dict()}]}
    )
    assert tokenizer_folder(outer) == tokenizer_folder(inner) != Path(base)
    assert template_of(outer) == TEMPLATES["chatml"]
    assert generation_config(outer) == generation_config(inner)
