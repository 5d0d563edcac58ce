"""Write and load recipe folders: checkpoints with a recipe in place of weights.

The few lines of code that `mount` writes into the folder derive from `Mounted`: where an Auto class
would read weights, they are merged. The unmodified command of a harness can score the folder if it
passes ``trust_remote_code=True``; otherwise transformers fails because it finds no weights. Code of
the models runs only in a folder that was mounted with ``trust_remote_code``.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeWarning
from merge_plugins.folders import complete_or_nothing, new_folder
from merge_plugins.outputs.card import model_card, portable
from merge_plugins.outputs.fits import fits
from merge_plugins.outputs.load import load_merged
from merge_plugins.outputs.model_files import copy_companions, write_configs
from merge_plugins.outputs.mounted_code import (
    CODE,
    ENCODER_CODE,
    auto_classes,
    auto_map,
    code,
    encoder_code,
    encoder_type,
    refuse_needed_code,
    without_code,
)
from merge_plugins.outputs.needs import carry
from merge_plugins.outputs.recipe_folder import (
    KEY,
    mounted_recipe,
    recipe_folder,
    refuse_changes,
    signature,
    trusts_code,
)
from merge_plugins.outputs.save import write_modules
from merge_plugins.planning import Plan
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, files, refuse_no_recipe
from merge_plugins.sources.models import model_folder
from merge_plugins.tokenizer import tokenizer_folder
from merge_plugins.weights.files import parsed_json, read_json
from merge_plugins.weights.modules import NAME as MODULES

DOWNLOAD = (
    *("cache_dir", "force_download", "local_files_only", "proxies"),
    *("revision", "subfolder", "token"),
)
"""Arguments of from_pretrained that locate a folder."""


def mount(
    recipe: Recipe, folder: str | os.PathLike[str], *, trust_remote_code: bool = False
) -> Path:
    """Write a recipe folder and return it; reads weights only to hash their files.

    The one exception is a sentence-transformers model whose modules behind the transformer have
    weights, a few MB as a rule: these are merged and written.

    ``trust_remote_code``: whether code that came with the models or the calibration data's task
    runs where the folder is loaded. Raises `MergeError` when the folder is not empty or the recipe
    does not fit its models.
    """
    refuse_no_recipe(recipe)
    target = new_folder(folder)
    recipe = recipe.trusting(trust_remote_code)
    merge = open_merge(recipe)
    plan = merge.plan
    classes = auto_classes(plan.config, plan.donor.path, trust_remote_code)
    fits(plan)
    if not trust_remote_code:
        refuse_needed_code(plan.embedding, tokenizer_folder(recipe))
    with complete_or_nothing(target) as unfinished:
        write_configs(recipe, _config(plan, classes, trust_remote_code), unfinished)
        copy_companions(plan, unfinished, code=trust_remote_code)
        write_modules(merge, unfinished)  # small, and no Auto class loads them
        if not trust_remote_code:
            _remove_code(unfinished / "tokenizer_config.json")
        (unfinished / f"{CODE}.py").write_text(code(classes), encoding="utf-8")
        _name_encoder(plan, unfinished)
        carry(recipe, unfinished)
        text = portable(recipe, target, carried=True)
        (unfinished / files.NAME).write_text(text, encoding="utf-8")
        card = model_card(plan, target.name, settled={}, carried=True) + HOW_TO_LOAD
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        plan.refuse_changes()
    return target


def _config(plan: Plan, classes: list[str], trust_remote_code: bool) -> dict[str, Any]:
    """Compose config.json; its ``auto_map`` names our code for models, and no other unless allowed.

    Allowed, the donor's own code makes its config and its tokenizer.
    """
    given = plan.config if trust_remote_code else without_code(plan.config)
    ours = {name: f"{CODE}.{name}" for name in classes}
    made = {**signature(plan.recipe), "trust_remote_code": trust_remote_code}
    return {**given, "auto_map": {**auto_map(given), **ours}, KEY: made}


def _name_encoder(plan: Plan, folder: Path) -> None:
    """Let modules.json name our code where sentence-transformers asks no Auto class."""
    kind = encoder_type(plan.config)
    if plan.embedding is None or kind is None:
        return
    modules = parsed_json(folder / MODULES)
    for module in modules:
        if module["type"].endswith(".Transformer"):
            module["type"] = kind
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    (folder / f"{ENCODER_CODE}.py").write_text(encoder_code(), encoding="utf-8")


def _remove_code(file: Path) -> None:
    """Rewrite a JSON file without the keys that name code, if it has any."""
    contents = read_json(file) if file.is_file() else {}
    if without_code(contents) != contents:
        text = json.dumps(without_code(contents), indent=2, ensure_ascii=False) + "\n"
        file.write_text(text, encoding="utf-8")


HOW_TO_LOAD = """
This folder holds the recipe and no weights. Where merge-plugins is installed, the merge is made as
it is loaded, by any program that loads a transformers checkpoint and passes
`trust_remote_code=True`.
"""


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

        Takes the arguments of the Auto class; ``trust_remote_code`` allowed this code, and that of
        the models runs if the folder was mounted so. Raises `MergeError` if the merge has changed
        since the folder was written.
        """
        where = {key: kwargs.pop(key) for key in DOWNLOAD if key in kwargs}
        folder = recipe_folder(name, **where)
        recipe = mounted_recipe(folder, plugins=True)  # who loads it trusts what is in it
        trusted = kwargs["trust_remote_code"] = trusts_code(folder)
        _warn_of_routing(recipe)
        for bits in ("load_in_4bit", "load_in_8bit"):
            if not kwargs.get(bits):  # transformers 5 rejects these, even switched off
                kwargs.pop(bits, None)
        auto_class = getattr(transformers, cls.__name__)
        model = load_merged(recipe, auto_class, config=_own(config, recipe, trusted), **kwargs)
        refuse_changes(recipe, folder)  # between the digest above and the opening of the files
        model.config._name_or_path = model.name_or_path = str(name)
        return model

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: loaded models have an ordinary class and are saved with it."""


def _own(config: Any, recipe: Recipe, trust_remote_code: bool) -> Any:
    """Copy the folder's live config with the ``auto_map`` of the recipe's donor, if it may run."""
    if config is None:
        return None
    config = copy.deepcopy(config)
    theirs = read_json(model_folder(recipe.donor) / "config.json").get("auto_map")
    if theirs and trust_remote_code:
        config.auto_map = theirs
    elif hasattr(config, "auto_map"):
        del config.auto_map
    return config


def _warn_of_routing(recipe: Recipe) -> None:
    if registry().get(recipe.merge_method).is_routed:
        warnings.warn(
            f"{recipe.merge_method} weighs its experts by the prompt. What is generated is right; "
            "but a harness that scores an answer passes prompt and answer as one text, and they "
            "are routed as one. For such tasks use lm_eval --model merged",
            MergeWarning,
            stacklevel=3,
        )
