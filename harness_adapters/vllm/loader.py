"""Load a merge's weights in place of files, in a subclass of vLLM's default loader.

Parallelism, online quantisation and the check for missing parameters are vLLM's. Weights are merged
as they are copied, so each rank reads and merges only its own part of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from harness_adapters.vllm import LOAD_FORMAT
from harness_adapters.vllm.ranks import all_hold, loaded_to, sharing_ranks
from merge_plugins.engine import Cost, Merge, announce, open_merge
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.outputs.ranks import lazily
from merge_plugins.outputs.recipe_folder import engines_recipe
from merge_plugins.planning import Plan
from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import Recipe
from merge_plugins.recipe.references import RECIPE_FILES, home
from merge_plugins.recipe.short_form_values import plugins
from merge_plugins.weights.hub import resolve
from merge_plugins.weights.modules import of_transformer

SHAPING = ("num_hidden_layers", "vocab_size", "tie_word_embeddings")
"""Keys of a config that a recipe can change and that decide the model's weights."""


class MergedModelLoader(DefaultModelLoader):
    """Load merges as vLLM's default loader loads files."""

    def __init__(self, load_config: LoadConfig) -> None:
        options = dict(load_config.model_loader_extra_config or {})
        self._named = options.pop("recipe", None)
        load_plugins(plugins(options.pop("plugin", None)))
        super().__init__(  # which would refuse our format and our option
            dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=options)
        )

    def download_model(self, model_config: ModelConfig) -> None:
        """Download every model of the recipe."""
        recipe = self.recipe(model_config)
        if recipe is None:
            super().download_model(model_config)
        else:
            open_merge(recipe)

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the merge's weights by checkpoint name, each merged as it is copied."""
        recipe = self.recipe(model_config)
        if recipe is None:
            yield from super().get_all_weights(model_config, model)
            return
        yield from self.merged(planned(recipe, model_config))
        for source in getattr(model, "secondary_weights", ()):
            yield from self._get_weights_iterator(source)

    def merged(self, plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield a merge's weights by checkpoint name, each merged as it is copied."""
        merge = Merge(plan)
        announce(merge, Cost(plan, loaded_to(self.load_config)), timed=False)  # there is a bar
        self.counter_before_loading_weights = time.perf_counter()  # for its message
        in_group = torch.distributed.is_initialized()
        shown = self.load_config.use_tqdm_on_load and not (
            in_group and torch.distributed.get_rank()
        )
        tensors = [
            (name, tensor)
            for name, tensor in of_transformer(merge.tensors()).items()
            if not should_skip_weight(name, self.local_expert_ids)
        ]
        bar = tqdm(tensors, "Merging", disable=not shown, unit=" weights")
        yield from lazily(
            bar, sharing_ranks(), device=loaded_to(self.load_config), all_hold=all_hold
        )
        plan.refuse_changes()

    def recipe(self, model_config: ModelConfig) -> Recipe | None:
        """Find the recipe of the model that vLLM loads; None if the model is no merge.

        A model that is itself a recipe, folder or file, overrides the option ``recipe``: vLLM
        reloads weights that way. Only a draft model, which shares these options, can be no merge.
        """
        model, trusted = Path(model_config.model), bool(model_config.trust_remote_code)
        if model.suffix in RECIPE_FILES and model.is_file():
            return Recipe.load(model).trusting(trusted)
        where = {"revision": model_config.revision, "cache_dir": self.load_config.download_dir}
        mounted = engines_recipe(model_config.model, trusted, **where)
        if mounted is not None:
            return mounted
        recipe = None if self._named is None else named_recipe(self._named)
        if recipe is not None and is_donor(recipe, model_config.model):
            return recipe.trusting(trusted)
        if model_config.runner_type == "draft":
            return None
        if recipe is None:
            raise RecipeError(
                f"{model} holds no recipe, which load format {LOAD_FORMAT!r} needs: give vLLM the "
                "folder that 'merge-plugins mount RECIPE FOLDER' writes as its model, or the "
                """recipe as --model-loader-extra-config '{"recipe": "merge.yaml"}'"""
            )
        raise RecipeError(
            f"vLLM was given {model}, but config and tokenizer of this merge are those of "
            f"{home(recipe.donor)}: give it that as its model, or the folder that 'merge-plugins "
            "mount' writes"
        )


def planned(recipe: Recipe, model_config: ModelConfig) -> Plan:
    """Open a merge, or raise `MergeError` unless it can be the weights of vLLM's model."""
    plan = open_merge(recipe).plan
    plan.refuse_routing("vLLM engine")
    refuse_other_shapes(plan.config, model_config.hf_config)
    return plan


def named_recipe(named: str | Mapping[str, Any]) -> Recipe:
    """Read the recipe in ``model_loader_extra_config``: a path, or the recipe's content."""
    return Recipe.from_mapping(named) if isinstance(named, Mapping) else Recipe.load(named)


def is_donor(recipe: Recipe, model: str) -> bool:
    """Return True if a merge has its config and tokenizer from this model."""
    donor = home(recipe.donor)
    path = Path(model)
    return model == donor or (path.exists() and path.resolve() == resolve(donor).resolve())


def refuse_other_shapes(config: Mapping[str, Any], built: Any) -> None:
    """Raise `MismatchError` unless the merge's weights fit the model that vLLM built."""
    if isinstance(config.get("text_config"), Mapping) and hasattr(built, "text_config"):
        config, built = config["text_config"], built.text_config
    for key in SHAPING:
        has, wants = getattr(built, key, None), config.get(key)
        if None not in (has, wants) and has != wants:
            raise MismatchError(
                f"the merge has {key} {wants}, the model that vLLM built {has}: give vLLM the "
                "folder that 'merge-plugins mount' writes"
            )
