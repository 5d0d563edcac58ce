"""The demo family: its data is reproducible, its tests are held out, its models load."""

import json
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge_plugins.demo import MODELS, SKILLS, family
from merge_plugins.demo.number_words import english, indonesian, thai, vietnamese
from merge_plugins.demo.skills import held_out, training


@pytest.mark.parametrize("skill", SKILLS)
def test_examples_are_the_same_at_each_call(skill):
    assert held_out(skill) == held_out(skill)
    assert list(islice(training(skill, seed=1), 50)) == list(islice(training(skill, seed=1), 50))
    assert list(islice(training(skill, seed=1), 50)) != list(islice(training(skill, seed=2), 50))


@pytest.mark.parametrize("skill", SKILLS)
def test_no_test_item_is_in_the_training_data(skill):
    trained = list(islice(training(skill, seed=0), 20_000))
    tests = held_out(skill)
    assert len({test.prompt for test in tests}) == 100
    assert {test.fact for test in tests}.isdisjoint(example.fact for example in trained)
    assert {test.prompt for test in tests}.isdisjoint(example.prompt for example in trained)


@pytest.mark.parametrize("spell", [english, indonesian, thai, vietnamese])
def test_no_two_numbers_share_their_words(spell):
    assert len({spell(number) for number in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (11, ("sebelas", "สิบเอ็ด", "mười một")),
        (21, ("dua puluh satu", "ยี่สิบเอ็ด", "hai mươi mốt")),
        (105, ("seratus lima", "หนึ่งร้อยห้า", "một trăm linh năm")),
        (715, ("tujuh ratus lima belas", "เจ็ดร้อยสิบห้า", "bảy trăm mười lăm")),
    ],
)
def test_irregular_numbers_are_spelled_as_people_do(number, words):
    assert (indonesian(number), thai(number), vietnamese(number)) == words


@pytest.mark.parametrize("name", family())
def test_a_shipped_model_loads_and_agrees_with_its_config(name):
    folder = family()[name]
    config = json.loads((folder / "config.json").read_text())
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert config["dtype"] == config["torch_dtype"] == str(model.dtype).removeprefix("torch.")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == config["eos_token_id"]
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.parametrize("name", family())
def test_a_shipped_tokenizer_fits_its_model_and_older_transformers(name):
    folder = family()[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.eos_token_id == config["eos_token_id"]
    for skill in SKILLS:
        example = held_out(skill)[0]
        text = example.prompt + example.answer
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_family_is_small():
    assert sum(path.stat().st_size for path in MODELS.rglob("*")) < 16 * 2**20
