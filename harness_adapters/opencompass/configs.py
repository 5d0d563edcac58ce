"""From a recipe to a model entry of a run config: plain data that a file can hold.

OpenCompass writes a model's entry to a file for each process that needs it, and knows a model by
its abbr alone. So the recipe crosses as one line of JSON with absolute paths, and its digest is in
the abbr, where results are kept by it, and beside it, where the model class compares the two.
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
from merge_plugins.errors import RecipeError, did_you_mean
from merge_plugins.planning import Plan
from merge_plugins.plugins import registry
from merge_plugins.recipe import Delta, Lora, Rebased, Recipe, Reference, files
from merge_plugins.recipe.fields import DTYPES

PACKAGE = "harness_adapters.opencompass"
DEFAULTS: Mapping[str, Any] = {
    "type": f"{PACKAGE}.MergedCausalLM",
    "batch_size": 8,
    "max_out_len": 256,
}
"""What an entry has that does not say otherwise; numbers are those of ``opencompass --hf-path``."""
IN_THE_RECIPE = "results are kept by the recipe's digest, so name the adapter in a recipe: {}"
REFUSED: Mapping[str, str] = {
    "path": "the recipe names its models",
    "peft_path": IN_THE_RECIPE.format("models: [{model: {model: merge.yaml, lora: adapter}}]"),
    "peft_kwargs": "an adapter is named in the recipe",
    "lora_path": IN_THE_RECIPE.format("models: [{model: {model: merge.yaml, lora: adapter}}]"),
}
"""Keys of stock model entries that cannot go with a merge, and why."""
LONGEST = 100
"""Characters of an abbr before its digest; it names folders, which may have 255 bytes."""


def merged_model(recipe: Recipe | Mapping[str, Any] | str | Path, **entry: Any) -> dict[str, Any]:
    """Return the model entry of a merge; ``entry``: what else the run config says of it.

    ``recipe``: a YAML file, or what it holds; paths are relative to the file, or to the cwd.
    ``entry`` takes the keys of the stock class of the same name, ``dtype`` (the merge's unless
    given), and ``abbr``, to which the digest is added. The recipe is checked against its models,
    whose headers are read and whose files are identified; hub ids are downloaded.
    """
    return settled({"recipe": recipe, **entry}, Path())


def settled(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return an entry with recipe, digest, abbr and dtype written out; ``folder``: of its paths.

    A settled entry settles to itself. Raises `MergeError` if no model can be made of it.
    """
    refuse(entry)
    entry = {**DEFAULTS, **entry}
    if not isinstance(entry["type"], str):
        raise RecipeError(f"type is a dotted name, '{DEFAULTS['type']}'; got {entry['type']!r}")
    recipe = read(entry["recipe"], folder)
    refuse_routed(recipe)
    found = open_merge(recipe).plan
    text = as_text(recipe)
    digest = entry.get("digest") or identity.digest(recipe)
    return {
        **{key: value for key, value in entry.items() if key not in ("dtype", "model_kwargs")},
        "abbr": _abbr(entry.get("abbr"), recipe),
        "recipe": text,
        "digest": identity.digest(checked(text, digest)),
        "model_kwargs": _model_kwargs(entry, found),
        "run_cfg": dict(entry.get("run_cfg") or {"num_gpus": min(1, torch.cuda.device_count())}),
    }


def refuse(entry: Mapping[str, Any]) -> None:
    """Stop at a key of a stock model entry that cannot go with a merge."""
    for key in REFUSED.keys() & entry.keys():
        if entry[key]:
            raise RecipeError(f"{key}= does not go with a merge: {REFUSED[key]}")


def refuse_routed(recipe: Recipe) -> None:
    """Stop at a merge that weighs its experts for each prompt."""
    if registry().get(recipe.merge_method).is_routed:
        raise RecipeError(
            f"{recipe.merge_method} weighs its experts by the prompt, and OpenCompass hands over "
            "prompt and answer as one text: the router would see the answer. Use "
            "lm_eval --model merged for it, or another method here"
        )


def read(given: Recipe | Mapping[str, Any] | str | Path, folder: Path) -> Recipe:
    """Return a recipe given as such, as its content, as JSON text, or as its file."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping):
        return Recipe.from_mapping(given, folder)
    if not isinstance(given, str | Path):
        raise RecipeError(f"recipe= is a YAML file or what it holds; got {given!r}")
    if str(given).lstrip().startswith("{"):
        return Recipe.from_mapping(files.from_json(str(given)), folder)
    return Recipe.load(folder / Path(given).expanduser())


def as_text(recipe: Recipe) -> str:
    """Return a recipe as JSON that survives being written to a config and read from it.

    Two braces in a chat template would be replaced there; JSON may spell the second as a number.
    """
    return json.dumps(recipe.as_dict()).replace("{{", "{\\u007b")


def checked(recipe: str, digest: str | None) -> Recipe:
    """Return the recipe that an entry holds, if it still is the one that its abbr names."""
    if not recipe.lstrip().startswith("{"):
        raise RecipeError(
            f"recipe={recipe!r} is not settled yet: start the run with 'python -m {PACKAGE} "
            f"run_config.py', or write __import__('{PACKAGE}.configs', fromlist=['_'])"
            f".merged_model({recipe!r}) in its place"
        )
    found = Recipe.from_mapping(files.from_json(recipe))
    if identity.digest(found) != digest:
        raise RecipeError(
            f"this model's results are kept as those of recipe {digest}, but its recipe is now "
            f"{identity.digest(found)}: the recipe or a file of its models changed. Make the entry again "
            "from the recipe, without digest and abbr"
        )
    return found


def _abbr(given: str | None, recipe: Recipe) -> str:
    """Return the name that OpenCompass keeps results by; never without the digest."""
    if given and identity.digest(recipe) in given and "/" not in given:
        return given
    names = "+".join(_short(model.ref) for model in recipe.models)
    text = re.sub(r"[^\w.+-]", "_", given or f"{recipe.merge_method}-{names}", flags=re.ASCII)
    return f"{text[:LONGEST]}-{identity.digest(recipe)}"


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


def _model_kwargs(entry: Mapping[str, Any], found: Plan) -> dict[str, Any]:
    """Return the arguments of the loader, the dtype among them; stock classes fall back to fp16."""
    kwargs = dict(entry.get("model_kwargs") or {})
    given = [entry.get("dtype"), kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None)]
    said = {dtype_name(value) for value in given if value is not None}
    if len(said) > 1:
        raise RecipeError(f"dtype= is given as {' and as '.join(sorted(said))}; keep one")
    dtype = said.pop() if said else "auto"
    if dtype == "auto":
        config = found.config
        dtype = config.get("dtype") or config.get("torch_dtype") or _dtype_of_weights(found)
    if is_vllm(entry["type"]):
        return {**kwargs, "dtype": dtype}
    return {**kwargs, "torch_dtype": f"torch.{dtype}"}


def dtype_name(given: Any) -> str:
    """Return a dtype as torch spells it, or ``auto``."""
    name = str(given).removeprefix("torch.")
    if name not in (*DTYPES, "auto"):
        hint = did_you_mean(name.replace("fp", "float").replace("bf", "bfloat"), DTYPES)
        raise RecipeError(f"dtype is one of {', '.join(DTYPES)}, auto; got {given!r}{hint}")
    return name


def _dtype_of_weights(found: Plan) -> str:
    return next(str(t.dtype) for t in found.tensors.values() if t.dtype.is_floating_point)[6:]


def is_vllm(kind: str) -> bool:
    """Whether OpenCompass takes a class for one of vLLM's, by its name alone."""
    return "VLLM" in kind
