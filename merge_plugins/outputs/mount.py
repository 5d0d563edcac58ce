"""Write and load recipe folders: checkpoints with a recipe in place of weights.

The few lines of code that `mount` writes into the folder derive from `Mounted`: where an Auto class
would read weights, they are merged. The unmodified command of a harness can score the folder if it
passes ``trust_remote_code=True``; otherwise transformers fails because it finds no weights.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils.hub import cached_file

from merge_plugins._version import __version__
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, MergeWarning, MismatchError, RecipeError
from merge_plugins.folders import complete_or_nothing, new_folder
from merge_plugins.identity import digest, model_identity
from merge_plugins.outputs.card import model_card, portable
from merge_plugins.outputs.fits import fits
from merge_plugins.outputs.load import load_merged
from merge_plugins.outputs.model_files import copy_companions, write_configs
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, files
from merge_plugins.sources.models import model_folder
from merge_plugins.weights.files import read_json

CODE = "modeling_merge"
"""Module that the folder's ``auto_map`` names."""
KEY = "merge_plugins"
"""Key of the merge's identity in a mounted ``config.json``."""
DOWNLOAD = (
    *("cache_dir", "force_download", "local_files_only", "proxies"),
    *("revision", "subfolder", "token"),
)
"""Arguments of from_pretrained that locate a folder."""


def mount(recipe: Recipe, folder: str | os.PathLike[str]) -> Path:
    """Write a recipe folder and return it; reads weights only to hash their files.

    Raises `MergeError` when the folder is not empty or the recipe does not fit its models.
    """
    target = new_folder(folder)
    plan = open_merge(recipe).plan
    classes = auto_classes(plan.config, plan.donor.path)
    fits(plan)
    config = {
        **plan.config,
        "auto_map": _code_of(plan.config, classes),
        KEY: {"version": __version__, **_identity(recipe)},
    }
    with complete_or_nothing(target) as unfinished:
        write_configs(recipe, config, unfinished)
        copy_companions(plan, unfinished)
        (unfinished / f"{CODE}.py").write_text(code(classes), encoding="utf-8")
        (unfinished / files.NAME).write_text(portable(recipe, target), encoding="utf-8")
        card = model_card(plan, target.name, settled={}) + HOW_TO_LOAD
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        plan.refuse_changes()
    return target


HOW_TO_LOAD = """
This folder holds the recipe and no weights. Where merge-plugins is installed, the merge is made as
it is loaded, by any program that loads a transformers checkpoint and passes
`trust_remote_code=True`.
"""


def auto_classes(config: Mapping[str, Any], folder: Path) -> list[str]:
    """List the Auto classes that support a model's architecture, with any head."""
    named = [name for name in config.get("auto_map", {}) if name.startswith("AutoModel")]
    model_type = str(config.get("model_type"))
    if model_type in CONFIG_MAPPING:
        kind = CONFIG_MAPPING[model_type]
        for name, found in vars(modeling_auto).items():
            mapping = getattr(found, "_model_mapping", None)
            if name.startswith("AutoModel") and mapping is not None and kind in mapping:
                named.append(name)
    if not named:
        raise RecipeError(
            f"{folder}: transformers {transformers.__version__} knows no model of type "
            f"{model_type}, so no harness could load it; see model_type in its config.json"
        )
    return list(dict.fromkeys(named))


def _code_of(config: Mapping[str, Any], classes: list[str]) -> dict[str, str]:
    """Build the ``auto_map``: our code for models, the donor's for its config and tokenizer."""
    return {**config.get("auto_map", {}), **{name: f"{CODE}.{name}" for name in classes}}


def code(classes: list[str]) -> str:
    """Compose the Python module of the folder: one class per Auto class."""
    defined = "".join(f"\n\nclass {name}(Mounted):\n    pass\n" for name in classes)
    return (
        '"""No weights are here: merge-plugins makes the merge of merge.yaml as it loads."""\n\n'
        f"from merge_plugins import Mounted\n{defined}"
    )


class Mounted:
    """Load the merge of a recipe folder; a subclass is named after each Auto class."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *args: Any,
        config: Any = None,
        adapter_kwargs: Any = None,
        code_revision: str | None = None,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """Merge and load the recipe of a folder, local or on the hub, as a live model.

        Takes the arguments of the Auto class. Raises `MergeError` if the merge has changed since
        the folder was written.
        """
        where = {key: kwargs.pop(key) for key in DOWNLOAD if key in kwargs}
        folder = recipe_folder(name, **where)
        recipe = mounted_recipe(folder)
        _warn_of_routing(recipe)
        for bits in ("load_in_4bit", "load_in_8bit"):
            if not kwargs.get(bits):  # transformers 5 rejects these, even switched off
                kwargs.pop(bits, None)
        auto_class = getattr(transformers, cls.__name__)
        model = load_merged(recipe, auto_class, config=_own(config, recipe), **kwargs)
        _refuse_changes(recipe, folder)  # between the digest above and the opening of the files
        model.config._name_or_path = model.name_or_path = str(name)
        return model

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: loaded models have an ordinary class and are saved with it."""


def _own(config: Any, recipe: Recipe) -> Any:
    """Copy the folder's live config with the ``auto_map`` of the recipe's donor, if any."""
    if config is None:
        return None
    config = copy.deepcopy(config)
    theirs = read_json(model_folder(recipe.donor) / "config.json").get("auto_map")
    if theirs:
        config.auto_map = theirs
    elif hasattr(config, "auto_map"):
        del config.auto_map
    return config


def _identity(recipe: Recipe) -> dict[str, Any]:
    """Collect digest, method and sources of a merge, to detect later changes."""
    method = registry().get(recipe.merge_method)
    return {
        "digest": digest(recipe),
        "method": [method.known_as, method.version or __version__],
        "sources": [model_identity(ref) for ref in recipe.references],
    }


def recipe_folder(name: str | os.PathLike[str], **where: Any) -> Path:
    """Find a recipe folder, local or on the hub; `OSError` of transformers if it is none.

    ``where``: arguments of `transformers.utils.hub.cached_file`, such as ``revision``.
    """
    return Path(str(cached_file(name, files.NAME, **where))).parent


def mounted_recipe(folder: Path) -> Recipe:
    """Read the recipe of a recipe folder.

    Raises `MismatchError` if its merge has changed since the folder was written: a harness that
    identifies the folder by its name would report the scores of one merge for the other.
    """
    recipe = Recipe.load(folder)
    _refuse_changes(recipe, folder)
    return recipe


def _refuse_changes(recipe: Recipe, folder: Path) -> None:
    made = read_json(folder / "config.json").get(KEY)
    if not isinstance(made, Mapping) or not {"digest", "method", "sources"} <= made.keys():
        raise CheckpointError(
            f"{folder / 'config.json'} does not say what the merge was; mount the recipe again: "
            f"merge-plugins mount {folder / 'merge.yaml'} NEW_DIR"
        )
    if digest(recipe) == made["digest"]:
        return
    now = _identity(recipe)
    pairs = zip(recipe.references, made["sources"], now["sources"], strict=False)
    changed = [str(ref) for ref, before, after in pairs if before != after]
    if len(now["sources"]) != len(made["sources"]):
        why = "merge.yaml names other models"
    elif changed:
        why = f"{', '.join(changed)} changed"
    elif now["method"] != made["method"]:
        why = f"it was made with {' '.join(made['method'])}, here is {' '.join(now['method'])}"
    else:
        why = "merge.yaml, its data or a tokenizer changed"
    raise MismatchError(
        f"{folder} is no longer the merge it was: {why}. Its digest was {made['digest']}, now "
        f"{now['digest']}. To use the merge as it is now, mount it under another name: "
        f"merge-plugins mount {folder / 'merge.yaml'} NEW_DIR"
    )


def _warn_of_routing(recipe: Recipe) -> None:
    if registry().get(recipe.merge_method).is_routed:
        warnings.warn(
            f"{recipe.merge_method} weighs its experts by the prompt. What is generated is right; "
            "but a harness that scores an answer passes prompt and answer as one text, and they "
            "are routed as one. For such tasks use lm_eval --model merged",
            MergeWarning,
            stacklevel=3,
        )
