"""`merge-plugins plan --json` is mergekit's plan: inputs and resolved parameters of every tensor.

Runs where MERGE_PLUGINS_MERGEKIT names the `mergekit-yaml` of a venv of its own; its python plans
the recipes in one process, by mergekit's public functions.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from mergekit_recipes import FAMILIES, N_LAYERS, write_models

from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.planning import Plan

MERGEKIT = os.environ.get("MERGE_PLUGINS_MERGEKIT", "")
N_RECIPES = int(os.environ.get("MERGE_PLUGINS_MERGEKIT_RECIPES", "72"))
SHARED, OWN = ("lambda", "normalize", "t"), ("weight", "density", "scale")
METHODS = {
    "linear": (("weight",), ("normalize",)),
    "task_arithmetic": (("weight",), ("lambda",)),
    "ties": (("weight", "density"), ("lambda", "normalize")),
    "slerp": ((), ("t",)),
    "passthrough": (("scale",), ()),
}
"""What is drawn for each method: settings that models may have, and shared ones."""
FILTERS = ("mlp", "self_attn", "layers.0.", "q_proj", "o_proj", "lm_head", "*")

pytestmark = pytest.mark.skipif(
    not MERGEKIT, reason="set MERGE_PLUGINS_MERGEKIT=/path/to/venv/bin/mergekit-yaml (0.1.5)"
)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], Any]]:
    folder = tmp_path_factory.mktemp("plans")
    for family in FAMILIES[:2]:
        write_models(folder / family)
    recipes = [draw(number, folder) for number in range(N_RECIPES)]
    (folder / "recipes.yaml").write_text(yaml.safe_dump_all(recipes))
    script = Path(__file__).with_name("mergekit_plan.py")
    command = [Path(MERGEKIT).with_name("python"), script, folder / "recipes.yaml", *SHARED, *OWN]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return list(zip(recipes, json.loads(run.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("number", range(N_RECIPES))
def test_a_plan_is_that_of_mergekit(number: int, plans: list[tuple[dict[str, Any], Any]]) -> None:
    written, theirs = plans[number]
    found = open_merge(Recipe.from_mapping(written)).plan
    ours = json.loads(json.dumps(found.as_dict()))["tensors"]
    tied = {"lm_head.weight"} - ours.keys()  # no input has one: mergekit plans it and drops it
    assert ours.keys() == theirs.keys() - tied
    for name, tensor in ours.items():
        told, where = theirs[name], f"{name} of\n{yaml.safe_dump(written)}"
        inputs = [[entry["model"], entry["tensor"]] for entry in tensor["inputs"]]
        assert sorted(inputs) == sorted(told["inputs"]), where
        for parameter, value in tensor["parameters"].items():
            each = resolved(found, told, parameter, inputs)
            default = found.method.parameters[parameter].default
            if isinstance(value, list):
                expected = [default if one is None else one for one in each]
            else:
                expected = default if told["shared"].get(parameter) is None else each
            assert value == pytest.approx(expected), where


def resolved(found: Plan, told: Any, parameter: str, inputs: list[list[str]]) -> Any:
    """What mergekit resolved: one value, or one for each expert in our order."""
    if not found.method.parameters[parameter].per_expert:
        return told["shared"].get(parameter)
    values = told["own"].get(parameter, [None] * len(told["inputs"]))
    by_input = {tuple(pair): one for pair, one in zip(told["inputs"], values, strict=True)}
    return [by_input[tuple(pair)] for pair in inputs[found.method.needs_base :]]


def draw(number: int, folder: Path) -> dict[str, Any]:
    """Return the recipe of that number: a stack of slices with settings at any of the levels."""
    rng = random.Random(number)
    method = list(METHODS)[number % len(METHODS)]
    root = folder / FAMILIES[number // len(METHODS) % 2]
    own, shared = METHODS[method]
    base = str(root / "base")
    n_models = 1 if method in ("slerp", "passthrough") else rng.randint(1, 3)
    slices = [_slice(rng, root, method, n_models) for _ in range(rng.randint(1, 3))]
    held: dict[str, Any] = {"merge_method": method, "dtype": "float32"}
    if method not in ("linear", "passthrough"):
        held["base_model"] = base
    top = {name: setting(rng) for name in own}
    top |= {name: shared_setting(rng, name) for name in shared}
    body: dict[str, Any] = {"slices": slices}
    if rng.random() < 0.3:
        body = {"modules": {"default": {**body, "parameters": {n: setting(rng) for n in own}}}}
    return {**held, **body, "parameters": top}


def _slice(rng: random.Random, root: Path, method: str, n_models: int) -> dict[str, Any]:
    own, shared = METHODS[method]
    length = rng.randint(1, N_LAYERS)
    sources = []
    for name in rng.sample("abc", n_models):
        first = rng.randint(0, N_LAYERS - length)
        entry = {"model": str(root / name), "layer_range": [first, first + length]}
        parameters = {p: setting(rng, partial=True) for p in own if rng.random() < 0.5}
        sources.append({**entry, "parameters": parameters})
    if method not in ("linear", "passthrough"):
        first = rng.randint(0, N_LAYERS - length)
        listed = {"model": str(root / "base"), "layer_range": [first, first + length]}
        sources.insert(rng.randint(0, len(sources)), listed)
    parameters = {p: setting(rng, partial=True) for p in own if rng.random() < 0.3}
    parameters |= {p: shared_setting(rng, p) for p in shared if rng.random() < 0.3}
    return {"sources": sources, "parameters": parameters}


def shared_setting(rng: random.Random, name: str) -> Any:
    return rng.random() < 0.5 if name == "normalize" else setting(rng)


def setting(rng: random.Random, *, partial: bool = False) -> Any:
    """Draw a number, a gradient or rules; ``partial``: rules that may match nothing."""
    points = [round(rng.uniform(0.1, 1.0), 2) for _ in range(rng.randint(1, 4))]
    kind = rng.choice(["number", "gradient", "rules"])
    if kind == "number":
        return points[0]
    if kind == "gradient":
        return [*points, 0.5]
    words = rng.sample(FILTERS, min(2, len(points)))
    rules = [{"filter": word, "value": p} for word, p in zip(words, points, strict=False)]
    return rules if partial else [*rules, {"value": 0.7}]
