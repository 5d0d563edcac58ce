"""Tokenizer files that are not as transformers writes them: the message names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError
from merge_plugins.recipe.tokenizer import Tokenizer
from merge_plugins.tokenizer import chat_template, generation_config, tokenizer_folder
from merge_plugins.tokenizer.alignment import merged_vocabulary
from merge_plugins.tokenizer.vocabulary import ROWS, vocabulary

Write = Callable[..., str]


def tokens(vocab: Any, **more: Any) -> dict[str, Any]:
    return {"model": {"vocab": vocab}, **more}


DAMAGED: dict[str, tuple[str, Any, str]] = {
    "no model": ("tokenizer.json", {}, "it has no vocab"),
    "a model that is a list": ("tokenizer.json", {"model": []}, "it has no vocab"),
    "a vocab that is a number": ("tokenizer.json", tokens(3), "it has no vocab"),
    "an id that is text": ("tokenizer.json", tokens({"a": "0"}), "token 'a' has id '0'"),
    "an id that is a truth": ("tokenizer.json", tokens({"a": True}), "token 'a' has id True"),
    "an id that is a share": ("tokenizer.json", tokens({"a": 0.5}), "token 'a' has id 0.5"),
    "an id below zero": ("tokenizer.json", tokens({"a": -1}), "token 'a' has id -1"),
    "an id beyond memory": ("tokenizer.json", tokens({"a": 10**12}), "an id is 0 to 2,097,151"),
    "an id beyond any embedding": ("tokenizer.json", tokens({"a": ROWS}), "an id is 0 to 2,0"),
    "a unigram without scores": ("tokenizer.json", tokens(["a"]), r"no list of \[token, score\]"),
    "a unigram of numbers": ("tokenizer.json", tokens([[1, 2]]), "a token of its vocab is no text"),
    "an added token that is text": (
        "tokenizer.json", tokens({}, added_tokens=["a"]), "an entry without content: 'a'",
    ),
    "added tokens that are none": (
        "tokenizer.json", tokens({}, added_tokens={"a": 1}), "an entry without content",
    ),
    "an added token without id": (
        "tokenizer.json", tokens({}, added_tokens=[{"content": "a"}]), "added_tokens has no id",
    ),
    "an added id beyond memory": (
        "tokenizer.json", tokens({}, added_tokens=[{"content": "a", "id": 10**12}]), "has id 10000",
    ),
    "a list of tokens": ("vocab.json", ["a"], "expected a JSON object"),
    "a token without row": ("vocab.json", {"a": None}, "token 'a' has id None"),
    "a decoder of words": (
        "tokenizer_config.json", {"added_tokens_decoder": {"one": {"content": "a"}}}, "map ids to",
    ),
    "a decoder of a long number": (
        "tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}, "map id",
    ),
    "a decoder of text": (
        "tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}, "an entry without content",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named(name: str, content: Any, message: str, tmp_path: Path) -> None:
    if name == "tokenizer_config.json":
        (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("vocab.txt", b"a\n\xff"),
        ("tokenizer.model", b"\x08" + b"\xff" * 1_000_000),
        ("tokenizer.model", b"\x0a\x05\x0a\x03ab\xff"),
    ],
)
def test_damaged_bytes_are_named(name: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=name):
        vocabulary(tmp_path)


@pytest.fixture
def recipe(checkpoint: Write) -> Recipe:
    """A merge of two models with two tokens each, with a tokenizer of its own."""
    models = [checkpoint({"embed": torch.ones(2, 2)}, vocab_size=2) for _ in "ab"]
    for model in models:
        Path(model, "tokenizer.json").write_text(json.dumps(tokens({"a": 0, model[-1]: 1})))
    mapping = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    return Recipe.from_mapping({**mapping, "tokenizer_source": "union", "chat_template": "auto"})


def test_a_vocabulary_of_a_million_million_rows_is_refused_before_it_is_merged(
    recipe: Recipe,
) -> None:
    file = Path(recipe.references[1], "tokenizer.json")
    file.write_text(json.dumps(tokens({"a": 10**12})))
    with pytest.raises(CheckpointError, match=f"{file}: token 'a' has id 1000000000000"):
        open_merge(recipe)


@pytest.mark.parametrize("template", [{"a": "b"}, 3, [{"name": "default", "template": ["x"]}]])
def test_a_template_that_is_no_text_is_named(recipe: Recipe, template: Any) -> None:
    file = Path(recipe.references[0], "tokenizer_config.json")
    file.write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match="its chat_template is no text"):
        chat_template(recipe)


def test_half_a_character_is_named_before_it_is_written(recipe: Recipe) -> None:
    file = Path(recipe.references[0], "tokenizer_config.json")
    file.write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(CheckpointError, match="it holds half a character"):
        tokenizer_folder(recipe)


def test_stops_of_any_shape_are_kept_as_they_are(recipe: Recipe) -> None:
    file = Path(recipe.references[0], "generation_config.json")
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    file.write_text(json.dumps({"eos_token_id": [1, "x", deep, {}], "bos_token_id": None}))
    assert generation_config(recipe) == {"eos_token_id": [1, "x", deep, {}], "bos_token_id": None}
    open_merge(recipe)


def test_vocabularies_are_joined_by_one_look_at_each_token() -> None:
    """Each new token's row was found by a look at all the others."""
    compared = []

    class Id(int):
        def __gt__(self, other: int) -> bool:
            compared.append(other)
            return super().__gt__(other)

    one, other = ({f"{name}{i}": Id(i) for i in range(300)} for name in "ab")
    joined = merged_vocabulary(Tokenizer("union"), "a", {"a": one, "b": other})
    assert [*joined] == [*one, *other]
    assert [*joined.values()] == [*range(600)]
    assert 0 < len(compared) < 1000
