"""Build the model entry of a merge for a run config, as plain data that a file can hold.

OpenCompass writes a model's entry to a file for each process that needs it, and identifies a model
by its abbr alone. So the entry holds the recipe as one line of JSON with absolute paths; its digest
is part of the abbr, which names the results, and an entry of its own, which the model class checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merge_plugins import identity
from merge_plugins.engine import open_merge
from merge_plugins.errors import RecipeError
from merge_plugins.planning import Plan
from merge_plugins.plugins import load_plugins, registry
from merge_plugins.recipe import Delta, Lora, Rebased, Recipe, Reference, parsing
from merge_plugins.recipe.dtypes import dtype_name
from merge_plugins.recipe.short_form_values import plugins

PACKAGE = "harness_adapters.opencompass"
DEFAULTS: Mapping[str, Any] = {
    "type": f"{PACKAGE}.MergedCausalLM",
    "batch_size": 8,
    "max_out_len": 256,
}
"""Defaults of an entry; the numbers are those of ``opencompass --hf-path``."""
IN_THE_RECIPE = "results are kept by the recipe's digest, so name the adapter in a recipe: {}"
REFUSED: Mapping[str, str] = {
    "path": "the recipe names its models",
    "peft_path": IN_THE_RECIPE.format("models: [{model: {model: merge.yaml, lora: adapter}}]"),
    "peft_kwargs": "an adapter is named in the recipe",
    "lora_path": IN_THE_RECIPE.format("models: [{model: {model: merge.yaml, lora: adapter}}]"),
}
"""Keys of stock model entries that no merge supports, and why."""
LONGEST = 100
"""Characters of an abbr before its digest; it names folders, which may have 255 bytes."""


def merged_model(recipe: Recipe | Mapping[str, Any] | str | Path, **entry: Any) -> dict[str, Any]:
    """Build the model entry of a merge for a run config.

    ``recipe``: a YAML file or its content; paths are relative to the file, or to the cwd.
    ``entry``: keys of the stock class of the same name, ``dtype`` (default: the merge's),
    ``abbr``, to which the digest is added, and ``plugin``, a Python file that is run for its
    methods. Reads headers and computes identities of the recipe's
    models, downloading hub ids; raises `MergeError` if the recipe does not fit them.
    """
    return settled({"recipe": recipe, **entry}, Path())


def settled(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Complete an entry with recipe, digest, abbr and dtype; ``folder``: base of its paths.

    A complete entry is returned unchanged. Raises `MergeError` if it describes no valid model.
    """
    refuse(entry)
    entry = {**DEFAULTS, **entry}
    if not isinstance(entry["type"], str):
        raise RecipeError(f"type is a dotted name, '{DEFAULTS['type']}'; got {entry['type']!r}")
    trusted = trusts(entry)
    given = (folder / Path(file).expanduser() for file in plugins(entry.get("plugin")))
    files = [str(file.absolute()) for file in given]
    load_plugins(files)
    recipe = read(entry["recipe"], folder).trusting(trusted)
    refuse_routed(recipe)
    plan = open_merge(recipe).plan
    text = as_text(recipe)
    digest = entry.get("digest") or identity.digest(recipe)
    checked(text, digest, trusted)
    return {
        **{key: value for key, value in entry.items() if key not in ("dtype", "model_kwargs")},
        **({"plugin": files} if files else {}),
        "abbr": _abbr(entry.get("abbr"), recipe, digest),
        "recipe": text,
        "digest": digest,
        "model_kwargs": _model_kwargs(entry, plan),
        "run_cfg": dict(entry.get("run_cfg") or {"num_gpus": min(1, torch.cuda.device_count())}),
    }


def refuse(entry: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a key of a stock model entry that no merge supports."""
    for key in REFUSED.keys() & entry.keys():
        if entry[key]:
            raise RecipeError(f"{key}= does not go with a merge: {REFUSED[key]}")


def trusts(entry: Mapping[str, Any]) -> bool:
    """Whether an entry allows the code that comes with a model or a task, as stock entries do."""
    return bool(dict(entry.get("model_kwargs") or {}).get("trust_remote_code"))


def refuse_routed(recipe: Recipe) -> None:
    """Raise `RecipeError` for a merge that weighs its experts per prompt."""
    if registry().get(recipe.merge_method).is_routed:
        raise RecipeError(
            f"{recipe.merge_method} weighs its experts by the prompt, and OpenCompass hands over "
            "prompt and answer as one text: the router would see the answer. Use "
            "lm_eval --model merged for it, or another method here"
        )


def read(given: Recipe | Mapping[str, Any] | str | Path, folder: Path) -> Recipe:
    """Read a recipe that is given as such, as a mapping, as JSON text, or as a file."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping):
        return Recipe.from_mapping(given, folder)
    if not isinstance(given, str | Path):
        raise RecipeError(f"recipe= is a YAML file or what it holds; got {given!r}")
    if str(given).lstrip().startswith("{"):
        return Recipe.from_mapping(parsing.from_json(str(given)), folder)
    return Recipe.load(folder / Path(given).expanduser())


def as_text(recipe: Recipe) -> str:
    """Write a recipe as JSON that an OpenCompass config can hold.

    OpenCompass substitutes double braces, as in chat templates, so the second is escaped.
    """
    return json.dumps(recipe.as_dict()).replace("{{", "{\\u007b")


def checked(recipe: str, digest: str | None, trust_remote_code: bool = False) -> Recipe:
    """Read the recipe of an entry; raises `RecipeError` unless it has the entry's digest."""
    if not recipe.lstrip().startswith("{"):
        raise RecipeError(
            f"recipe={recipe!r} is not settled yet: start the run with 'python -m {PACKAGE} "
            f"run_config.py', or write __import__('{PACKAGE}.configs', fromlist=['_'])"
            f".merged_model({recipe!r}) in its place"
        )
    parsed = Recipe.from_mapping(parsing.from_json(recipe)).trusting(trust_remote_code)
    now = identity.digest(parsed)
    if now != digest:
        raise RecipeError(
            f"this model's results are kept as those of recipe {digest}, but its recipe is now "
            f"{now}: the recipe or a file of its models changed. Make the entry again "
            "from the recipe, without digest and abbr"
        )
    return parsed


def _abbr(given: str | None, recipe: Recipe, digest: str) -> str:
    """Name the model for OpenCompass, which files results by name; the digest is part of it."""
    if given and digest in given and "/" not in given:
        return given
    names = "+".join(_short(model.ref) for model in recipe.models)
    text = re.sub(r"[^\w.+-]", "_", given or f"{recipe.merge_method}-{names}", flags=re.ASCII)
    return f"{text[:LONGEST]}-{digest}"


def _short(ref: Reference) -> str:
    if isinstance(ref, str):
        return Path(ref.partition("@")[0]).name
    if isinstance(ref, Lora):
        return Path(ref.adapter).name
    if isinstance(ref, Delta):
        return Path(ref.delta).name
    if isinstance(ref, Rebased):
        return _short(ref.model)
    assert isinstance(ref, Recipe), "the only other kind of reference"
    return ref.merge_method


def _model_kwargs(entry: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Build the loader's arguments, always with a dtype: without one, stock classes use fp16."""
    kwargs = dict(entry.get("model_kwargs") or {})
    given = [entry.get("dtype"), kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None)]
    names = {dtype_name(value, also=("auto",)) for value in given if value is not None}
    if len(names) > 1:
        raise RecipeError(f"dtype= is given as {' and as '.join(sorted(names))}; keep one")
    dtype = names.pop() if names else "auto"
    if dtype == "auto":
        config = plan.config
        dtype = config.get("dtype") or config.get("torch_dtype") or _dtype_of_weights(plan)
    if is_vllm(entry["type"]):
        return {**kwargs, "dtype": dtype}
    return {**kwargs, "torch_dtype": f"torch.{dtype}"}


def _dtype_of_weights(plan: Plan) -> str:
    return next(str(t.dtype) for t in plan.tensors.values() if t.dtype.is_floating_point)[6:]


def is_vllm(kind: str) -> bool:
    """Return True if OpenCompass treats a class as one of vLLM's, by its name alone."""
    return "VLLM" in kind
