"""Load a recipe as a live transformers model, without a checkpoint in between.

The loader of transformers gets lazy tensors as its state dict: it renames, fuses, quantises, shards
and places each like a stored one, and each is merged when the loader moves it to its device, there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from merge_plugins.engine import Cost, Merge, announce, open_merge
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.hf.classes import absent_weights, class_to_load
from merge_plugins.hf.fit import refuse_no_type
from merge_plugins.hf.rehearsal import Rehearsal, for_class, read_config
from merge_plugins.hf.versions import LAZY, VERSION, adapt
from merge_plugins.outputs.device_map import only_device
from merge_plugins.outputs.fits import fits
from merge_plugins.outputs.lazy_tensor import LazyTensor
from merge_plugins.parallel import pool
from merge_plugins.recipe import Recipe, refuse_no_recipe
from merge_plugins.recipe.references import home
from merge_plugins.routing import model as routed
from merge_plugins.sources.models import model_folder
from merge_plugins.tokenizer import generation_config
from merge_plugins.weights.modules import of_transformer

NEEDS_PATH = ("gguf_file", "variant", "use_safetensors", "revision", "subfolder")
"""Arguments of from_pretrained that select files; the recipe names the files instead."""
OF_THE_HUB = {
    "cache_dir": "HF_HOME",
    "local_files_only": "HF_HUB_OFFLINE",
    "token": "HF_TOKEN",
    "use_auth_token": "HF_TOKEN",
}
"""Arguments of from_pretrained for downloads, and the variables that every source obeys."""


def load_merged(
    recipe: Recipe,
    auto_class: Any = AutoModelForCausalLM,
    *,
    config: Any = None,
    trust_remote_code: bool | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Merge and load a live model, in evaluation mode.

    ``auto_class`` is a transformers Auto class or a model class; ``kwargs`` are those of its
    ``from_pretrained`` (dtype, device_map, quantization_config, tp_plan, ...). Without ``dtype``
    the model has the dtype of the merge. Raises `MergeError` before any weight is read when the
    recipe, its models and the class do not fit together.

    ``trust_remote_code``: whether code that came with the models or a task of the recipe runs.
    """
    loading = open_loading(recipe, auto_class, kwargs, config, trust_remote_code)
    loading.check(kwargs)
    loading.announce(kwargs)
    return loading.load(kwargs)


@dataclass(frozen=True)
class Loading:
    """A merge that is opened to become a live model."""

    merge: Merge
    model_class: Any
    config: Any
    """The live config that the model will have."""

    def check(self, kwargs: Mapping[str, Any]) -> Rehearsal | None:
        """Raise `MergeError` for what would not load as it is; return how it would be loaded.

        ``kwargs``: those of ``from_pretrained``. Reads no weight.
        """
        plan = self.merge.plan
        if plan.method.is_routed:
            routed.check(plan, self.model_class, self.config, kwargs)
        if kwargs.get("ignore_mismatched_sizes"):
            return None
        return fits(plan, self.model_class, self.config)

    def announce(self, kwargs: Mapping[str, Any]) -> None:
        """Tell what the merge costs where it is loaded to."""
        where = kwargs.get("device_map")
        device = torch.device("cpu") if where is None else only_device(where)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        given = dtype if isinstance(dtype, torch.dtype) else None
        announce(self.merge, Cost(self.merge.plan, device, given))

    def load(self, kwargs: Mapping[str, Any]) -> PreTrainedModel:
        """Merge and load."""
        merge = self.merge
        # a method that runs its models does so before this one is built
        merge.settled(only_device(kwargs.get("device_map")) if LAZY else None)
        model = _load(self.model_class, self.config, merge, kwargs)
        if merge.plan.method.is_routed:
            routed.route(model, merge)
        describe(model, merge)
        return model


def open_loading(
    recipe: Recipe,
    auto_class: Any,
    kwargs: dict[str, Any],
    config: Any = None,
    trust_remote_code: bool | None = None,
) -> Loading:
    """Open a merge and find its class and config; arguments as of `load_merged`.

    Takes arguments out of ``kwargs`` that select nothing, and raises for those that select files.
    """
    refuse_no_recipe(recipe)
    for name in NEEDS_PATH:
        if kwargs.pop(name, None):
            raise RecipeError(f"{name}= does not apply to a merge; the recipe names its models")
    for name, variable in OF_THE_HUB.items():
        if kwargs.pop(name, None):
            raise RecipeError(
                f"{name}= does not apply to a merge; set the environment variable {variable}, "
                "which every source obeys"
            )
    recipe = recipe.trusting() if trust_remote_code else recipe
    merge = open_merge(recipe)
    plan = merge.plan
    donor = str(model_folder(recipe.donor))
    if config is None:
        refuse_no_type(plan.config, plan.donor.path)
        config = read_config(donor, plan.donor.path / "config.json", bool(trust_remote_code))
    if getattr(config, "quantization_config", None):
        raise RecipeError("config= is of a quantised model; merge full-precision weights")
    adapt(config, plan.config, plan.donor.path)
    model_class = class_to_load(auto_class, config, donor, trust_remote_code)
    return Loading(merge, model_class, for_class(model_class, config))


def describe(model: Any, merge: Merge) -> None:
    """Give a live model what is no weight of its merge, when the last weight has been read.

    Raises `CheckpointError` if a source has changed meanwhile.
    """
    recipe = merge.plan.recipe
    merge.plan.refuse_changes()
    model.merge_settled = merge.settled()
    generation = generation_config(recipe)
    if model.can_generate() and generation is not None:
        model.generation_config = GenerationConfig.from_dict(generation)
    model.config._name_or_path = model.name_or_path = home(recipe.donor)


def _load(
    model_class: Any, config: Any, merge: Merge, kwargs: Mapping[str, Any]
) -> PreTrainedModel:
    arguments = {**kwargs, "config": config, "output_loading_info": True}
    pool()  # the loader's threads start next
    tensors = {
        name: LazyTensor(tensor) if LAZY else tensor[...]
        for name, tensor in of_transformer(merge.tensors()).items()
    }
    if Version("4.49") > VERSION and arguments.get("device_map") is not None:
        model, info = _load_then_dispatch(model_class, arguments, tensors)
    else:
        model, info = model_class.from_pretrained(None, state_dict=tensors, **arguments)
    absent = absent_weights(info)
    if absent:
        raise MismatchError(
            f"{model_class.__name__} needs {len(absent)} weights the merge does not have, first "
            f"{absent[0]}; transformers would have filled them with random numbers"
        )
    return model


def _load_then_dispatch(
    model_class: Any, arguments: dict[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, Any]:
    """Load on the CPU, place afterwards: transformers < 4.49 cannot do both from a state dict."""
    import accelerate

    device_map, max_memory, folder = (
        arguments.pop(name, None) for name in ("device_map", "max_memory", "offload_folder")
    )
    arguments.pop("low_cpu_mem_usage", None)
    model, info = model_class.from_pretrained(None, state_dict=tensors, **arguments)
    if isinstance(device_map, str):
        device_map = accelerate.infer_auto_device_map(
            model, max_memory, no_split_module_classes=model._no_split_modules
        )
    if len(set(device_map.values())) == 1:
        model.to(next(iter(device_map.values())))
    else:
        model = accelerate.dispatch_model(model, device_map, offload_dir=folder)
    return model, info
