"""Mutated files beside the weights: what needs them says which one is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mutations import mutated, mutated_text
from plain_llamas import ADDED, TOKENIZER

from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.tokenizer import chat_template, generation_config, tokenizer_folder

Stream = Callable[[int], Iterator[Random]]
Attempt = Callable[[Callable[[], Any]], Any]

UNIGRAM = {**TOKENIZER, "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]]}}
SPECIAL = {
    "eos_token": {"content": "</s>"},
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "added_tokens_decoder": {"1": ADDED[0], "10": ADDED[2]},
}
SEEDS = (
    ("tokenizer.json", {**TOKENIZER, "added_tokens": ADDED}),
    ("tokenizer.json", UNIGRAM),
    ("tokenizer_config.json", SPECIAL),
    ("vocab.json", TOKENIZER["model"]["vocab"]),  # type: ignore[index]
    ("added_tokens.json", {"<extra>": 10}),
    ("generation_config.json", {"eos_token_id": [1, 2], "bos_token_id": 1, "do_sample": True}),
    ("chat_template.json", {"chat_template": "{{ messages }}"}),
)
WORDS = ("content", "id", "vocab", "model", "added_tokens", "chat_template", "eos_token_id", "name")
RAW = ("vocab.txt", "tokenizer.model", "chat_template.jinja")
PIECES = b"".join(b"\x0a\x05\x0a\x03" + piece for piece in (b"<s>", b"abc", b"def"))


@pytest.mark.filterwarnings("ignore::merge_plugins.errors.MergeWarning")
def test_mutated_files_beside_the_weights(family: Path, stream: Stream, attempt: Attempt) -> None:
    before = {file: file.read_bytes() for file in (family / "a").iterdir()}
    for random in stream(200):
        name, content = random.choice(SEEDS)
        if random.random() < 0.2:
            name = random.choice(RAW)
            raw = bytearray(PIECES if name == "tokenizer.model" else "a\nb\nä\n".encode())
            raw[random.randrange(len(raw))] = random.randrange(256)
            changed = bytes(raw)
        elif random.random() < 0.5:
            changed = mutated_text(json.dumps(content), random).encode("utf-8", "surrogatepass")
        else:
            changed = json.dumps(mutated(content, random, WORDS), default=str).encode()
        (family / "a" / name).write_bytes(changed)
        if name not in ("tokenizer.json", "generation_config.json"):
            (family / "a" / "tokenizer.json").unlink()
        recipe = Recipe.from_mapping(
            {
                "merge_method": "linear",
                "models": random.choice((["a", "b"], ["b", "a"])),
                "parameters": {"weight": 1},
                "tokenizer_source": random.choice(("union", "a", "b")),
                "chat_template": "auto",
            },
            family,
        )
        for part in (tokenizer_folder, chat_template, generation_config, open_merge):
            attempt(lambda part=part, recipe=recipe: part(recipe))
        for file in (family / "a").iterdir():
            file.write_bytes(before[file]) if file in before else file.unlink()
        (family / "a" / "tokenizer.json").write_bytes(before[family / "a" / "tokenizer.json"])
