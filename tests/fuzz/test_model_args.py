"""Mutated arguments of a harness's command line: a recipe, or a `MergeError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mutations import mutated, mutated_text

from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.plugins import registry
from merge_plugins.recipe import read_recipe
from merge_plugins.recipe.short_form import HARNESS, KEYS, MISTAKEN

Stream = Callable[[int], Iterator[Random]]
Attempt = Callable[[Callable[[], Any]], Any]

SEEDS: Sequence[Mapping[str, Any]] = (
    {"method": "linear", "models": "a:0.6+b:0.4"},
    {"method": "ties", "base": "base", "models": "a+b", "density": "0.5+0.3", "weights": 1},
    {"method": "ties", "base": "base", "models": ["a", "b"], "weights": [1, 0.5], "density": 0.5},
    {"method": "linear", "models": {"a": 0.6, "b": {"weight": 0.4}}, "tokenizer_source": "a"},
    {"method": "slerp", "base": "a", "models": "a+b", "params": {"t": [0, 0.5, 1]}, "seed": 3},
    {"method": "linear", "models": '[{"model": "a", "weight": 1}, {"model": "b", "weight": 1}]'},
    {
        "method": "task_arithmetic",
        "base": "base",
        "models": "a++lora:0.5+b",
        "exclude": "norm+head",
    },
    {"method": "fisher_merging", "models": "a+b", "data": "texts.jsonl+texts.jsonl"},
    {"config": "recipe.yaml", "density": "0.2", "models": "b+a", "weights": "1+1"},
    {"config": "recipe.yaml", "params": '{"weight": 0.1}', "chat_template": "auto", "donor": "a"},
)
RECIPE = {
    "merge_method": "ties",
    "base_model": "base",
    "models": ["a", {"model": "b", "parameters": {"density": 0.3}}],
    "parameters": {"weight": 0.5},
}


@pytest.fixture
def here(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the short form start at the current folder."""
    monkeypatch.chdir(family)
    Path("recipe.yaml").write_text(json.dumps(RECIPE))


def words() -> Sequence[Any]:
    methods = registry().methods
    spellings = {word for method in methods.values() for word in method.spellings}
    return sorted(
        {*KEYS, *HARNESS, *MISTAKEN, *spellings, *methods, "a", "b+a", "a:1+b:2", "0.5+1"}
    )


@pytest.mark.usefixtures("here")
def test_every_seed_is_a_merge() -> None:
    for seed in SEEDS:
        open_merge(Recipe.from_model_args(seed))


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore::merge_plugins.errors.MergeWarning")
def test_mutated_arguments(stream: Stream, attempt: Attempt) -> None:
    known = words()
    for random in stream(200):
        given = mutated(dict(random.choice(SEEDS)), random, known)
        given = given if isinstance(given, dict) else {"method": given}
        attempt(lambda given=given: open_merge(Recipe.split_model_args(given)[0]))


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore::merge_plugins.errors.MergeWarning")
def test_a_mutated_short_form(stream: Stream, attempt: Attempt) -> None:
    """As `merge-plugins check` gets it."""
    for random in stream(200):
        seed = random.choice(SEEDS)
        parts = (f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in seed.items())
        text = mutated_text(",".join(parts), random)
        attempt(lambda text=text: open_merge(read_recipe(text)))
