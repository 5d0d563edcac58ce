"""Where weights come from; everything else is vLLM's own loader.

Parallelism, online quantisation and the check that no parameter was left out are vLLM's. Weights
are merged as they are copied, so that each rank reads and merges what it holds of them.
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
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from harness_adapters.vllm import LOAD_FORMAT
from merge_plugins.engine import Merge, open_merge
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.outputs.lazy_tensor import LazyTensor
from merge_plugins.outputs.mount import mounted_recipe, recipe_folder
from merge_plugins.recipe import Recipe
from merge_plugins.recipe.references import RECIPE_FILES, home
from merge_plugins.weights.hub import resolve

SHAPING = ("num_hidden_layers", "vocab_size", "tie_word_embeddings")
"""What a recipe can change of a config that decides which weights a model has."""
logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is logged under its own name


class MergedModelLoader(DefaultModelLoader):
    """vLLM's default loader, with merges in place of files."""

    def __init__(self, load_config: LoadConfig) -> None:
        options = dict(load_config.model_loader_extra_config or {})
        self._named = options.pop("recipe", None)
        super().__init__(  # which knows neither our format nor our option
            dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=options)
        )

    def download_model(self, model_config: ModelConfig) -> None:
        """Bring every model of the recipe here."""
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
        yield from self._merged(recipe, model_config)
        for source in getattr(model, "secondary_weights", ()):
            yield from self._get_weights_iterator(source)

    def _merged(
        self, recipe: Recipe, model_config: ModelConfig
    ) -> Iterator[tuple[str, torch.Tensor]]:
        found = open_merge(recipe).plan
        found.refuse_routing("vLLM engine")
        refuse_other_shapes(found.config, model_config.hf_config)
        logger.info("%s, while it loads", found)
        self.counter_before_loading_weights = time.perf_counter()  # for its message
        in_group = torch.distributed.is_initialized()
        shown = self.load_config.use_tqdm_on_load and not (
            in_group and torch.distributed.get_rank()
        )
        tensors = Merge(found).tensors().items()
        for name, tensor in tqdm(tensors, "Merging", disable=not shown, unit=" weights"):
            if not should_skip_weight(name, self.local_expert_ids):
                yield name, LazyTensor(tensor)

    def recipe(self, model_config: ModelConfig) -> Recipe | None:
        """Return the recipe of the model that vLLM loads; None: its weights are its own.

        A model that is itself a recipe, folder or file, comes before the option ``recipe``: vLLM
        reloads weights that way. Only a draft model, which shares these options, is no merge.
        """
        model = Path(model_config.model)
        if model.suffix in RECIPE_FILES and model.is_file():
            return Recipe.load(model)
        where = {"revision": model_config.revision, "cache_dir": self.load_config.download_dir}
        try:
            folder = recipe_folder(model_config.model, **where)
        except OSError:  # no such model, or no recipe in it
            pass
        else:
            return mounted_recipe(folder)
        recipe = None if self._named is None else named_recipe(self._named)
        if recipe is not None and is_donor(recipe, model_config.model):
            return recipe
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


def named_recipe(named: str | Mapping[str, Any]) -> Recipe:
    """Return the recipe that ``model_loader_extra_config`` holds: a path, or the recipe itself."""
    return Recipe.from_mapping(named) if isinstance(named, Mapping) else Recipe.load(named)


def is_donor(recipe: Recipe, model: str) -> bool:
    """Whether a merge has that model's config and tokenizer."""
    donor = home(recipe.donor)
    path = Path(model)
    return model == donor or (path.exists() and path.resolve() == resolve(donor).resolve())


def refuse_other_shapes(config: Mapping[str, Any], built: Any) -> None:
    """Raise `MismatchError` unless vLLM's live config is of a model that holds the merge."""
    if isinstance(config.get("text_config"), Mapping) and hasattr(built, "text_config"):
        config, built = config["text_config"], built.text_config
    for key in SHAPING:
        has, wants = getattr(built, key, None), config.get(key)
        if None not in (has, wants) and has != wants:
            raise MismatchError(
                f"the merge has {key} {wants}, the model that vLLM built {has}: give vLLM the "
                "folder that 'merge-plugins mount' writes"
            )
