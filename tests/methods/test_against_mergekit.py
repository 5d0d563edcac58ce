"""Random recipes, merged by mergekit 0.1.5 and by us: the same tensors.

Runs where MERGE_PLUGINS_MERGEKIT names the `mergekit-yaml` of a venv of its own; mergekit is only
ever run, as a separate program, and merges every recipe in one process. A recipe is a function of
its number, so MERGE_PLUGINS_MERGEKIT_RECIPES=500 tries more of them and keeps the first ones.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mergekit_recipes import (
    FAMILIES,
    FILTERS,
    METHODS,
    N_LAYERS,
    number,
    per_model,
    weights,
    write_models,
)
from torch import Tensor

import merge_plugins

MERGEKIT = os.environ.get("MERGE_PLUGINS_MERGEKIT", "")
N_RECIPES = int(os.environ.get("MERGE_PLUGINS_MERGEKIT_RECIPES", "200"))
VERSION = "from importlib.metadata import version; print(version('mergekit'))"
N_MODELS = {
    **dict.fromkeys(("linear", "karcher", "model_stock"), (2, 3)),
    **dict.fromkeys(("passthrough", "slerp", "nearswap", "arcee_fusion"), (1, 1)),
    "nuslerp": (2, 2),
}
"""Fewest and most models besides the base; of the others 1 to 3."""
IN_FLOAT32 = ("arcee_fusion", "ramplus_tl")
"""Methods whose bfloat16 merges mergekit writes in float32 unless out_dtype is set."""
BITS = {"float32": 24, "bfloat16": 8, "float16": 11}
"""Of a number's digits, by dtype."""

pytestmark = pytest.mark.skipif(
    not MERGEKIT, reason="set MERGE_PLUGINS_MERGEKIT=/path/to/venv/bin/mergekit-yaml (0.1.5)"
)


@pytest.mark.parametrize("number", range(N_RECIPES))
def test_a_random_recipe_gives_the_tensors_of_mergekit(
    number: int, merged_by_mergekit: Path
) -> None:
    plain = draw_recipe(number, merged_by_mergekit)
    theirs = weights(merged_by_mergekit / f"merge-{number}")
    ours = merge_plugins.merged_tensors(merge_plugins.Recipe.from_mapping(plain))
    assert ours.keys() == theirs.keys()
    inputs = [weights(ref) for ref in references(plain)]
    dtype = getattr(
        torch, plain.get("dtype") or Path(references(plain)[0]).parent.name.split("-")[1]
    )
    wrong = {}
    for name, expected in theirs.items():
        got, terms = ours[name][...], torch.stack([model[name].to(dtype) for model in inputs])
        if plain["merge_method"] in IN_FLOAT32 and "out_dtype" not in plain:
            expected = expected.to(dtype)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
        slack = weighed_at_will(plain, name, terms)
        # It divides 16 bits by norms, float32 sums whose last bit depends on the order, and scales
        # what it rounded: one of a thousand float16 weights in a hundred is off by two.
        n_ulps = 2 if plain["merge_method"] == "karcher" and dtype == torch.float16 else 1
        off = ~(agree(got, expected, terms, slack, n_ulps) | trimmed_at_will(plain, name, terms))
        if off.any():
            wrong[name] = (
                f"{int(off.sum())} of {off.numel()}, first {got[off][0]} for {expected[off][0]}"
            )
    assert not wrong, f"{wrong}\n{yaml.safe_dump(plain, sort_keys=False)}"


@pytest.fixture(scope="session")
def merged_by_mergekit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models, and every recipe's merge as mergekit writes it."""
    found = subprocess.check_output([Path(MERGEKIT).with_name("python"), "-c", VERSION], text=True)
    if found.strip() != "0.1.5":
        pytest.skip(f"mergekit {found.strip()}: the numbers we keep are those of 0.1.5")
    folder = tmp_path_factory.mktemp("mergekit")
    for family in FAMILIES:
        write_models(folder / family)
    recipes = [{"name": f"merge-{i}", **draw_recipe(i, folder)} for i in range(N_RECIPES)]
    (folder / "recipes.yaml").write_text(yaml.safe_dump_all(recipes))
    command = [Path(MERGEKIT).with_name("mergekit-multi"), folder / "recipes.yaml"]
    options = ["--intermediate-dir", folder, "--no-copy-tokenizer", "--quiet"]
    run = subprocess.run([*command, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return folder


def draw_recipe(number: int, folder: Path) -> dict[str, Any]:
    """Return the recipe of that number; methods and families take turns, the rest is drawn."""
    rng = random.Random(number)
    method, family = (
        METHODS[number % len(METHODS)],
        FAMILIES[number // len(METHODS) % len(FAMILIES)],
    )
    base, *experts = (str(folder / family / name) for name in ("base", "a", "b", "c"))
    rng.shuffle(experts)
    n_models = rng.randint(*N_MODELS.get(method, (1, 3)))
    models = [{"model": e, "parameters": {}} for e in experts[:n_models]]
    plain = {"merge_method": method, "models": models, "base_model": base, "parameters": {}}
    FILL[method](rng, plain)
    for key in ("dtype", "out_dtype"):
        if rng.random() < 0.6:
            plain[key] = rng.choice(list(BITS))
    return plain


def fill_linear(rng: random.Random, plain: dict[str, Any]) -> None:
    role = rng.choice(["no base", "no base", "a model", "one more model"])
    if role == "no base":
        del plain["base_model"]
    elif role == "a model":
        plain["models"].insert(rng.randint(0, 1), {"model": plain["base_model"], "parameters": {}})
    else:
        plain["parameters"]["weight"] = number(rng, 0.1, 1.0)
    per_model(rng, plain, "weight", 0.1, 1.0)
    maybe(rng, plain, "normalize", truth(rng))


def fill_slerp(rng: random.Random, plain: dict[str, Any]) -> None:
    plain["parameters"]["t"] = number(rng, 0.0, 1.0)
    list_the_base(rng, plain)


def fill_nuslerp(rng: random.Random, plain: dict[str, Any]) -> None:
    per_model(rng, plain, "weight", 0.1, 1.0)
    if rng.random() < 0.5:
        del plain["base_model"]
    else:
        list_the_base(rng, plain)
    maybe(rng, plain, "nuslerp_flatten", truth(rng))
    maybe(rng, plain, "nuslerp_row_wise", truth(rng))


def fill_multislerp(rng: random.Random, plain: dict[str, Any]) -> None:
    per_model(rng, plain, "weight", 0.1, 1.0)
    if rng.random() < 0.5:
        del plain["base_model"]
    else:
        list_the_base(rng, plain)
    maybe(rng, plain, "normalize_weights", truth(rng))
    maybe(rng, plain, "eps", 1e-6)


def fill_karcher(rng: random.Random, plain: dict[str, Any]) -> None:
    if rng.random() < 0.5:
        del plain["base_model"]
    else:  # is one more model
        list_the_base(rng, plain)
    maybe(rng, plain, "max_iter", rng.randint(0, 12))
    maybe(rng, plain, "tol", rng.choice([1e-3, 1e-7]))


def fill_sce(rng: random.Random, plain: dict[str, Any]) -> None:
    maybe(rng, plain, "select_topk", number(rng, 0.1, 1.0))
    maybe(rng, plain, "int8_mask", truth(rng))
    list_the_base(rng, plain)


def fill_nearswap(rng: random.Random, plain: dict[str, Any]) -> None:
    plain["parameters"]["t"] = number(rng, 0.0, 0.05)
    list_the_base(rng, plain)


def fill_ram(rng: random.Random, plain: dict[str, Any]) -> None:
    maybe(rng, plain, "epsilon", number(rng, 0.0, 0.05))
    if plain["merge_method"] == "ramplus_tl":
        maybe(rng, plain, "r", number(rng, 0.0, 1.0))
        maybe(rng, plain, "alpha", number(rng, 0.0, 3.0))
    list_the_base(rng, plain)


def fill_model_stock(rng: random.Random, plain: dict[str, Any]) -> None:
    maybe(rng, plain, "filter_wise", truth(rng))


def fill_passthrough(rng: random.Random, plain: dict[str, Any]) -> None:
    del plain["base_model"], plain["models"][1:]
    if rng.random() < 0.8:
        per_model(rng, plain, "scale", 0.0, 2.0)


def fill_task_vectors(rng: random.Random, plain: dict[str, Any]) -> None:
    method = plain["merge_method"]
    if normalize := method in ("ties", "della") or rng.random() < 0.3:
        maybe(rng, plain, "normalize", value=True)
    lowest = 0.1 if normalize else -0.5  # weights that cancel leave only rounding to compare
    per_model(rng, plain, "weight", lowest, 1.0)
    maybe(rng, plain, "lambda", number(rng, 0.3, 1.5))
    maybe(rng, plain, "int8_mask", truth(rng))
    if method in TRIMMED:
        maybe(rng, plain, "rescale", truth(rng))
        for model in plain["models"]:
            model["parameters"]["density"] = number(rng, 0.1, 0.9)
            if method.startswith("breadcrumbs"):
                model["parameters"]["gamma"] = number(rng, 0.0, 0.1)
    elif method.startswith(("dare", "della")):  # at density 1 it drops nothing
        maybe(rng, plain, "density", 1.0)
    list_the_base(rng, plain)


def list_the_base(rng: random.Random, plain: dict[str, Any]) -> None:
    """List the base among the models now and then: allowed, and changes nothing."""
    if rng.random() < 0.3:
        plain["models"].insert(rng.randint(0, 1), {"model": plain["base_model"]})


TRIMMED = ("ties", "breadcrumbs", "breadcrumbs_ties")
FILL = dict.fromkeys(METHODS, fill_task_vectors) | {
    "linear": fill_linear,
    "slerp": fill_slerp,
    "nuslerp": fill_nuslerp,
    "multislerp": fill_multislerp,
    "karcher": fill_karcher,
    "model_stock": fill_model_stock,
    "passthrough": fill_passthrough,
    "sce": fill_sce,
    "nearswap": fill_nearswap,
    "arcee_fusion": list_the_base,
    "ram": fill_ram,
    "ramplus_tl": fill_ram,
}


def maybe(rng: random.Random, plain: dict[str, Any], name: str, value: Any) -> None:
    if rng.random() < 0.5:
        plain["parameters"][name] = value


def truth(rng: random.Random) -> Any:
    """Draw a setting that is true or false: for all weights, in steps over the layers, by name."""
    steps = [rng.random() < 0.5 for _ in range(rng.randint(2, 4))]
    rules = [{"filter": rng.choice(FILTERS), "value": steps}, {"value": steps[0]}]
    return rng.choice([True, False, steps, rules])


def value_of(setting: Any, name: str) -> float:
    """What mergekit reads from a drawn setting: the first filter that fits, then the gradient."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        setting = next(s["value"] for s in setting if s.get("filter", "") in name)
    if not isinstance(setting, list):
        return float(setting)
    layer = re.search(r"layers\.(\d+)\.", name)  # weights outside the layers read the first value
    at = int(layer[1]) / (N_LAYERS - 1) * (len(setting) - 1) if layer else 0.0
    low = min(int(at), len(setting) - 2)
    return float((1 - at + low) * setting[low] + (at - low) * setting[low + 1])


def trimmed_at_will(plain: dict[str, Any], name: str, terms: Tensor) -> Tensor:
    """Where trimming may keep or drop: a cut falls between elements of the same magnitude."""
    anywhere = torch.zeros(terms.shape[1:], dtype=torch.bool)
    base, *experts = terms
    if "select_topk" in plain["parameters"]:
        anywhere |= selected_at_will(plain, name, terms)
    if plain["merge_method"] not in TRIMMED:
        return anywhere
    settings = [m["parameters"] for m in plain["models"] if "parameters" in m]
    for expert, parameters in zip(experts, settings, strict=True):
        magnitude, n = (expert - base).abs(), base.numel()
        n_outliers = int(value_of(parameters.get("gamma", 0.0), name) * n)
        n_kept = int(value_of(parameters["density"], name) * n)
        for cut in (n_outliers, n_outliers + n_kept):
            anywhere |= equal_at(magnitude, cut)
    return anywhere


def selected_at_will(plain: dict[str, Any], name: str, terms: Tensor) -> Tensor:
    """Where SCE may select or not: variances at the cut that are the same."""
    base, *experts = terms
    variance = (torch.stack(experts) - base).var(0, unbiased=False)
    topk = value_of(plain["parameters"]["select_topk"], name)
    return equal_at(variance, int(topk * int((variance != 0).sum())))


def weighed_at_will(plain: dict[str, Any], name: str, terms: Tensor) -> Tensor:
    """How far results may be apart because SCE's weights follow from what it selected at will."""
    if "select_topk" not in plain["parameters"] or not selected_at_will(plain, name, terms).any():
        return torch.zeros(terms.shape[1:])
    return 0.01 * (terms[1:].amax(0) - terms[1:].amin(0)).float()


def equal_at(size: Tensor, cut: int) -> Tensor:
    """Where an entry equals both the last one kept and the first one dropped."""
    ranked = size.flatten().sort(descending=True).values
    if not 0 < cut < len(ranked) or ranked[cut - 1] != ranked[cut]:
        return torch.zeros_like(size, dtype=torch.bool)
    return size == ranked[cut]


def agree(got: Tensor, expected: Tensor, terms: Tensor, slack: Tensor, n_ulps: int = 1) -> Tensor:
    """Where results differ by at most an ulp, or 1e-6, of the largest number around."""
    largest = torch.cat([terms.float(), expected.float()[None]]).abs().amax(0)
    bits = min(BITS[str(x.dtype).removeprefix("torch.")] for x in (terms, expected))
    ulp = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - bits)
    allowed = torch.maximum(1e-6 * largest, n_ulps * ulp)
    return (got.float() - expected.float()).abs() <= allowed + slack


def references(plain: dict[str, Any]) -> list[str]:
    """Every model once, the base first."""
    named = [plain.get("base_model"), *(model["model"] for model in plain["models"])]
    return [ref for ref in dict.fromkeys(named) if ref]
