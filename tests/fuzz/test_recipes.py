"""Mutated recipes: whatever comes before the weights ends well, or in a `MergeError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from mutations import mutated, mutated_text

from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.plugins import registry
from merge_plugins.recipe.keys import ENTRY, MODULE, SOURCE, TOP
from merge_plugins.tokenizer import chat_template, generation_config, tokenizer_folder

Stream = Callable[[int], Iterator[Random]]
Attempt = Callable[[Callable[[], Any]], Any]

SEEDS = """\
merge_method: linear
models: [{model: a, parameters: {weight: 0.6}}, {model: b, parameters: {weight: 0.4}}]
dtype: float32
---
merge_method: ties
base_model: base
models: [a, b]
parameters: {density: [0.2, 0.9], weight: 0.5, normalize: true, int8_mask: true}
tokenizer_source: union
out_dtype: bfloat16
---
merge_method: dare_ties
base_model: {path: base}
models:
  - model: a
    parameters: {density: 0.5, weight: [{filter: self_attn, value: [0, 1]}, {value: 0.3}]}
  - {model: b+lora, parameters: {density: 0.5, weight: 0.3}}
exclude: [norm, lm_head]
seed: 7
---
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources:
      - {model: b, layer_range: [1, 2], parameters: {scale: {filter: o_proj, value: 0}}}
---
merge_method: slerp
base_model: a
slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]}]
parameters: {t: [{filter: mlp, value: [0, 0.5, 1]}, {value: 0.5}]}
---
merge_method: task_arithmetic
base_model: base
models:
  - {model: a, parameters: {weight: 1}}
  - {model: {model: base, delta: delta}, parameters: {weight: 0.5}}
  - {model: b, base_model: other, parameters: {weight: 0.5}}
tokenizer:
  source: union
  tokens: {<new>: {source: {kind: zero}}, w1: {source: a, force: true},
           <x>: {source: {kind: model_token, model: a, token_id: 1}}}
  pad_to_multiple_of: 8
chat_template: chatml
---
merge_method: fisher_merging
base_model: base
models: [{model: a, data: texts.jsonl}, {model: b, data: {path: texts.jsonl, limit: 3, seed: 1}}]
---
merge_method: della
base_model: base
models: [{model: {merge_method: linear, models: [a, b], parameters: {weight: 1}}}, b]
parameters: {density: 0.5, epsilon: 0.1, lambda: 1.1, weight: 1}
chat_template: auto
generation_config: b
donor: base
---
merge_method: emr
base_model: base
models: [{model: a, parameters: {tasks: first}}, {model: b, parameters: {tasks: second}}]
---
name: half
merge_method: linear
models: [a, b]
parameters: {weight: 0.5}
---
merge_method: widen
base_model: base
models: [a, half]
parameters: {above_average_value_ratio: 1.0}
---
merge_method: linear
modules:
  default: {models: [a, b], parameters: {weight: 1}}
tokenizer_source: b
"""
ALONE = tuple(yaml.safe_load_all(SEEDS))
"""Recipes of many kinds, on the models of `family`."""


def test_every_seed_is_a_recipe(family: Path) -> None:
    """Else its mutants would be refused for another reason than their mutation."""
    for seed in ALONE:
        if "half" not in str(seed):
            complete(Recipe.from_mapping(seed, family))


def complete(recipe: Recipe) -> None:
    """Do with a recipe all that comes before its weights are read, and write it down again."""
    open_merge(recipe)
    for part in (tokenizer_folder, chat_template, generation_config):
        part(recipe)
    assert Recipe.from_mapping(yaml.safe_load(recipe.to_yaml())) == recipe


def words() -> Sequence[Any]:
    """Every key of a recipe, every parameter, and the names that the seeds use."""
    methods = registry().methods.values()
    spellings = {word for method in methods for word in method.spellings}
    models = ("base", "a", "b", "lora", "delta", "other", "a+lora", "texts.jsonl", "half")
    return sorted({*TOP, *ENTRY, *SOURCE, *MODULE, "filter", "value", *spellings, *models})


@pytest.mark.filterwarnings("ignore::merge_plugins.errors.MergeWarning")
def test_a_mutated_mapping(family: Path, stream: Stream, attempt: Attempt) -> None:
    known = words()
    for random in stream(200):
        mapping = mutated(random.choice(ALONE), random, known)
        attempt(lambda mapping=mapping: complete(Recipe.from_mapping(mapping, family)))


@pytest.mark.filterwarnings("ignore::merge_plugins.errors.MergeWarning")
def test_a_mutated_file(family: Path, stream: Stream, attempt: Attempt) -> None:
    for random in stream(200):
        first = random.randrange(len(ALONE))
        documents = ALONE[first : first + random.choice((1, 2))]
        file = family / random.choice(("recipe.yaml", "recipe.json"))
        text = yaml.safe_dump_all(documents, sort_keys=False)
        text = json.dumps(documents[0], indent=1) if file.suffix == ".json" else text
        text = mutated_text(text, random)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        attempt(lambda file=file: complete(Recipe.load(file)))
