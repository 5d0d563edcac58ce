"""Load a merge of classifiers: one encoder in memory, under the heads of all its tasks.

What the recipe excludes, the heads at least, is not merged: each task has that of its own model.
All else is merged, and the models of all tasks hold the same parameters of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.hf.classes import class_to_load
from merge_plugins.hf.experts import is_classifier, load_tokenizer, stored_whole
from merge_plugins.hf.rehearsal import Rehearsal, read_config
from merge_plugins.hf.versions import adapt
from merge_plugins.identity import tokenizer_identity
from merge_plugins.outputs.live import become
from merge_plugins.outputs.load import open_loading
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe, Reference, refuse_no_recipe
from merge_plugins.recipe.references import home
from merge_plugins.routing.model import follow
from merge_plugins.tokenizer import tokenizer_folder


class Classifiers:
    """Live classifiers of one merge, a model for each task; they share what is merged.

    ``recipe``: its models say which task their heads answer. ``trust_remote_code``, ``kwargs``: as
    of `load_merged`; all weights are on one device. Raises `MergeError` before any weight is read
    when the recipe and its models do not fit together.
    """

    def __init__(
        self, recipe: Recipe, *, trust_remote_code: bool | None = None, **kwargs: Any
    ) -> None:
        refuse_no_recipe(recipe)
        self.recipe = recipe
        self._trust, self._kwargs = trust_remote_code, kwargs
        self._tokenizers: dict[str, Any] = {}
        self._models = _loaded(recipe, trust_remote_code, dict(kwargs))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of their models."""
        return tuple(self.recipe.tasks)

    @property
    def device(self) -> torch.device:
        """Where all models are."""
        return self._models[self.tasks[0]].device

    def for_task(self, task: str) -> tuple[PreTrainedModel, Any]:
        """Return the model of a task and its tokenizer, as a `Trainer` or a pipeline takes them.

        The model equals what ``load_merged(recipe.for_task(task), ...)`` would load.
        """
        folder = tokenizer_folder(self.recipe.for_task(task))
        content = tokenizer_identity(str(folder))
        if content not in self._tokenizers:
            self._tokenizers[content] = load_tokenizer(folder)
        return self._models[task], self._tokenizers[content]

    def become(self, recipe: Recipe) -> bool:
        """Turn into another merge, in the memory it has; False if only a new one can be that.

        After an error, or False, drop it: it may be neither merge.
        """
        if _apart(recipe) != _apart(self.recipe):
            return False
        first = recipe.for_task(self.tasks[0])
        options = {**self._kwargs, "trust_remote_code": self._trust}
        model = self._models[self.tasks[0]]
        if not become(model, first, AutoModelForSequenceClassification, options):
            return False
        self.recipe = recipe
        return True


def load_classifiers(recipe: Recipe, **kwargs: Any) -> Classifiers:
    """Merge and load the classifiers of a recipe; arguments as of `Classifiers`."""
    return Classifiers(recipe, **kwargs)


def _apart(recipe: Recipe) -> tuple[Any, ...]:
    """Select what must be equal for two merges to have the same heads and tokenizers."""
    owners = [(model.task, model.ref) for model in recipe.tasks.values()]
    return owners, recipe.exclude, recipe.dtype, recipe.out_dtype, recipe.tokenizer


def _loaded(
    recipe: Recipe, trust_remote_code: bool | None, kwargs: dict[str, Any]
) -> dict[str, PreTrainedModel]:
    """Load the model of the first task, and those of the others around its weights."""
    first, *others = recipe.tasks or ("",)
    chosen, auto_class = recipe.for_task(first), AutoModelForSequenceClassification
    loading = open_loading(chosen, auto_class, kwargs, None, trust_remote_code)
    plan = loading.merge.plan
    _refuse_no_classifiers(recipe, plan)
    rehearsal = loading.check(kwargs)
    model = loading.load(kwargs)
    if {weight.device for weight in model.parameters()} != {model.device}:
        raise RecipeError("classifiers of several tasks share one device; leave out device_map=")
    apart = _apart_in(plan, rehearsal, model)
    weights = chain(model.named_parameters(), model.named_buffers())
    shared = {name: weight for name, weight in weights if name not in apart.values()}
    models = {first: model}
    for task in others:
        ref = recipe.tasks[task].ref
        own = _own(plan, ref, apart, model)
        models[task] = _around(model, {**shared, **own}, plan, ref, trust_remote_code)
        if plan.method.is_routed:
            follow(models[task], model, task)
    plan.refuse_changes()
    return models


def _refuse_no_classifiers(recipe: Recipe, plan: Plan) -> None:
    for task, entry in recipe.tasks.items():
        if not is_classifier(plan.checkpoints[entry.ref]):
            named = plan.checkpoints[entry.ref].config.get("architectures")
            raise RecipeError(
                f"{entry.ref} has task: {task}, but its config.json names {named} and no "
                "...ForSequenceClassification, whose head would answer it"
            )


def _apart_in(plan: Plan, rehearsal: Rehearsal | None, model: PreTrainedModel) -> dict[str, str]:
    """List the donor's weights that are not merged: from names in the checkpoint to live ones."""
    if rehearsal is None:
        places = stored_whole(model, plan.tensors)
    else:
        places = {pieces[0].source: live for live, pieces in rehearsal.live.items() if pieces}
    names = [name for name, each in plan.tensors.items() if each.models == (plan.recipe.donor,)]
    return {name: places[name] for name in names if name in places}


def _own(
    plan: Plan, ref: Reference, apart: Mapping[str, str], first: PreTrainedModel
) -> dict[str, Parameter]:
    """Read what a model has in place of the donor's weights that are not merged, by live names."""
    source, found = plan.checkpoints[ref], dict[str, Parameter]()
    for name, live in apart.items():
        if name in source:
            rounded = source[name].view().to(plan.tensors[name].dtype, copy=True)
            found[live] = Parameter(rounded.to(first.device, first.dtype))
    return found


def _around(
    first: PreTrainedModel,
    weights: Mapping[str, Tensor],
    plan: Plan,
    ref: Reference,
    trust_remote_code: bool | None,
) -> PreTrainedModel:
    """Build the model of another task, in evaluation mode, around weights by their live names."""
    config = _config(first, plan, ref, trust_remote_code)
    folder = str(plan.checkpoints[ref].path)
    auto_class = AutoModelForSequenceClassification
    with torch.device("meta"):
        model = class_to_load(auto_class, config, folder, trust_remote_code)(config)
    for name, empty in [*model.named_parameters(), *model.named_buffers()]:
        given = weights.get(name)
        if given is None or given.shape != empty.shape:
            has = "the merge has none" if given is None else f"there is {list(given.shape)}"
            raise MismatchError(
                f"{type(model).__name__} of {ref} needs {name} {list(empty.shape)}, and {has}"
            )
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, given)
    model.config._name_or_path = model.name_or_path = home(ref)
    return model.eval()  # type: ignore[no-any-return]


def _config(
    first: PreTrainedModel, plan: Plan, ref: Reference, trust_remote_code: bool | None
) -> Any:
    """Read a model's live config, with what the merge changes in the donor's."""
    source = plan.checkpoints[ref]
    changed = {k: v for k, v in plan.config.items() if v != plan.donor.config.get(k)}
    config = read_config(str(source.path), source.path / "config.json", bool(trust_remote_code))
    adapt(config, {**source.config, **changed}, source.path)
    config._attn_implementation = first.config._attn_implementation
    return config
