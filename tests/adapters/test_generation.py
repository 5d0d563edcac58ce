"""What the generating adapters share, against transformers' own pipeline on the saved merge."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from parrots import Parrots, babblers, parrots
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from harness_adapters import generation
from harness_adapters.generation import Generator
from merge_plugins import MergeError, Recipe, save
from merge_plugins.demo import family
from merge_plugins.demo.skills import held_out

PROMPTS = ["one:", "a much longer prompt, so that the first needs padding:", "ü", "two\n"]


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Parrots:
    return babblers(tmp_path_factory.mktemp("babblers"))


@pytest.fixture(scope="module")
def sayings(tmp_path_factory: pytest.TempPathFactory) -> Parrots:
    """Say "alpha beta gamma" after a colon."""
    known = {"left": [(":", " alpha")], "right": [(" alpha", " beta"), (" beta", " gamma")]}
    return parrots(tmp_path_factory.mktemp("parrots"), known)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_those_of_transformers_own_pipeline_on_the_saved_merge(
    nonsense: Parrots, tmp_path: Path, batch_size: int
) -> None:
    recipe = Recipe.load(nonsense.recipe(tmp_path / "merge.yaml", 0.5))
    folder = save(recipe, tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    stock = pipeline(
        "text-generation",
        model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=tokenizer,
        batch_size=batch_size,
    )
    some = sorted(PROMPTS, key=len)
    wanted = stock(some, return_full_text=False, do_sample=False, max_new_tokens=24)
    found = Generator(recipe, batch_size=batch_size).complete(PROMPTS, max_new_tokens=24)
    texts = {prompt: row[0]["generated_text"] for prompt, row in zip(some, wanted, strict=True)}
    assert found == [texts[prompt] for prompt in PROMPTS]
    assert len(set(found)) == len(PROMPTS)


def test_an_answer_does_not_depend_on_what_is_in_its_batch(
    nonsense: Parrots, tmp_path: Path
) -> None:
    recipe = Recipe.load(nonsense.recipe(tmp_path / "merge.yaml", 0.5))
    together = Generator(recipe, batch_size=4).complete(PROMPTS, max_new_tokens=24)
    assert together == Generator(recipe, batch_size=1).complete(PROMPTS, max_new_tokens=24)


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(
    sayings: Parrots, tmp_path: Path
) -> None:
    found = Generator(Recipe.load(sayings.recipe(tmp_path / "merge.yaml")))
    prompts = ["say:", "gamma say:", "nothing"]

    def say(*stop: str) -> list[str]:
        return found.complete(prompts, max_new_tokens=8, stop=stop)

    assert say() == [" alpha beta gamma", " alpha beta gamma", ""]
    assert say("ma") == [" alpha beta gam", " alpha beta gam", ""]
    assert say("a beta", "gamma") == [" alph", " alph", ""]
    assert say("say") == say(": alpha") == say()  # the prompt stops nothing
    steps: list[int] = []
    found.model.register_forward_hook(lambda *_: steps.append(1))
    say("alpha")
    assert len(steps) == 1


def test_an_answer_keeps_its_first_space_where_spaces_mark_words(tmp_path: Path) -> None:
    words = {word: i for i, word in enumerate(["<unk>", "def", "▁return", "▁▁▁", "▁x", "▁say"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    found = Generator(Recipe.load(_any_recipe(tmp_path)))
    found.__dict__["tokenizer"] = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert found.tokenizer.decode([2, 4]) == "return x"
    assert found._text([5], [2, 4]) == " return x"


def _any_recipe(folder: Path) -> Path:
    file = folder / "merge.yaml"
    file.write_text(
        f"merge_method: average_merging\nmodels: [{family()['math']}, {family()['code']}]\n"
    )
    return file


def test_a_prompt_without_room_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    found = Generator(Recipe.load(_any_recipe(tmp_path)))  # sees 256 tokens
    with pytest.raises(MergeError, match=r"sees 256 tokens at once; prompt 1 has \d+, and max_new"):
        found.complete(["What is 3 + 4?", "What is 3 + 4? " * 40], max_new_tokens=64)
    with pytest.raises(MergeError, match="prompt 0 is empty"):
        found.complete([""], max_new_tokens=4)
    with pytest.raises(MergeError, match="max_new_tokens is 1 or more"):
        found.complete(["a"], max_new_tokens=0)
    with pytest.raises(MergeError, match="num_return_sequences= does not go with"):
        found.complete(["a"], max_new_tokens=1, num_return_sequences=2)
    assert "model" not in found.__dict__
    assert found.complete([], max_new_tokens=1) == []


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    recipe = Recipe.load(_any_recipe(tmp_path))
    with pytest.raises(MergeError, match="batch_size"):
        Generator(recipe, batch_size=0)
    with pytest.raises(MergeError, match="dtype is one of float32"):
        Generator(recipe, dtype="int8")
    assert Generator(recipe).model.dtype == torch.bfloat16
    assert Generator(recipe, dtype="float32").model.dtype == torch.float32


def test_a_routed_merge_weighs_its_experts_for_each_prompt_of_a_batch(tmp_path: Path) -> None:
    experts = "\n".join(f"  - {{model: {family()[s]}, data: {s}.jsonl}}" for s in ("math", "sea"))
    for skill in ("math", "sea"):
        rows = [
            f'{{"prompt": {json.dumps(row.prompt)}, "response": "x"}}'
            for row in held_out(skill, 32)
        ]
        (tmp_path / f"{skill}.jsonl").write_text("\n".join(rows))
    (tmp_path / "merge.yaml").write_text(
        f"merge_method: twin_merging\nbase_model: {family()['base']}\nmodels:\n{experts}\n"
    )
    rows = [
        row for pair in zip(held_out("math", 6), held_out("sea", 6), strict=True) for row in pair
    ]
    found = Generator(Recipe.load(tmp_path / "merge.yaml"), batch_size=6)
    answers = found.complete([row.prompt for row in rows], max_new_tokens=40)
    assert sum(a == row.answer for a, row in zip(answers, rows, strict=True)) >= 11
    found.batch_size = 1
    assert found.complete([row.prompt for row in rows], max_new_tokens=40) == answers


def test_a_router_that_goes_by_task_gets_its_name(tmp_path: Path) -> None:
    tasks = {"math": "mbpp*", "code": "*human*"}
    models = "".join(
        f"\n  - {{model: {family()[skill]}, parameters: {{tasks: '{name}'}}}}"
        for skill, name in tasks.items()
    )
    (tmp_path / "merge.yaml").write_text(
        f"merge_method: emr\nbase_model: {family()['base']}\nmodels:{models}\n"
    )
    found = Generator(Recipe.load(tmp_path / "merge.yaml"))
    rows = held_out("code", 8)
    prompts = [row.prompt for row in rows]
    answers = found.complete(prompts, max_new_tokens=24, stop=["\n"], task="humaneval")
    assert answers == [row.answer for row in rows]
    assert found.complete(prompts, max_new_tokens=24, stop=["\n"], task="mbpp") != answers
    with pytest.raises(MergeError, match="routes by the name of a task"):
        found.complete(prompts, max_new_tokens=24)


def test_a_file_is_written_in_full_or_not_at_all(tmp_path: Path) -> None:
    generation.write(tmp_path / "out.json", "all of it")
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    with pytest.raises(MergeError, match=r"out\.json exists"):
        generation.new_file(tmp_path / "out.json")
    with pytest.raises(MergeError, match="there is no folder"):
        generation.new_file(tmp_path / "there" / "out.json")
    with pytest.raises(UnicodeEncodeError):
        generation.write(tmp_path / "other.json", "half of it \ud800")
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_nothing_is_answered_for_a_limit_of_none_at_all(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    generation.add_arguments(parser, max_new_tokens=9)
    words = [str(_any_recipe(tmp_path)), "--out", str(tmp_path / "x"), "--limit", "0"]
    with pytest.raises(MergeError, match="--limit is how many rows"):
        generation.generator(parser.parse_args(words))
