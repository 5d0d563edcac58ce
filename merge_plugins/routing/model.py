"""Route a live model: weigh its experts for each request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from merge_plugins.api import Example, Gate, Routes
from merge_plugins.calibration.batches import pair_row
from merge_plugins.engine import Merge
from merge_plugins.errors import RecipeError
from merge_plugins.hf.experts import load_tokenizer
from merge_plugins.planning import Plan, PlannedTensor
from merge_plugins.routing import hooks
from merge_plugins.routing.apart import modules_run, rewritten_in, run_apart
from merge_plugins.routing.requests import Prompt, Weigher
from merge_plugins.routing.routed import Routed, Routing
from merge_plugins.tokenizer import tokenizer_folder

logger = logging.getLogger(__name__)


PARALLEL = ("tp_plan", "tp_size", "device_mesh", "distributed_config")


def check(plan: Plan, model_class: Any, config: Any, options: Mapping[str, Any]) -> None:
    """Raise `MergeError` for options and models that routing does not support; reads no weight."""
    method = plan.method.name
    for name in (*PARALLEL, "quantization_config"):
        if options.get(name) is not None:
            raise RecipeError(f"{method} does not go with {name}= yet; leave it out")
    device_map = options.get("device_map")
    places = {*map(str, device_map.values())} if isinstance(device_map, Mapping) else set()
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise RecipeError(f"{method} does not go with offloading; hold the whole model in memory")
    if getattr(config, "is_encoder_decoder", False):
        raise RecipeError(f"{method} routes decoders and encoders; {config.model_type} is both")
    with torch.device("meta"):
        _modules(plan, model_class(config))
    _gate(plan)  # raises if weights differ
    for expert in plan.recipe.models:
        data = plan.recipe.data_of(expert)
        if data is not None:
            data.check()


def route(model: Any, merge: Merge) -> None:
    """Add hooks, methods and a router to a live shared expert, in place."""
    plan = merge.plan
    weigher = Weigher(model, plan.method.name, len(plan.experts))
    modules, tensors = _modules(plan, model), merge.tensors()
    n_bytes = sum(_branch_numel(plan.tensors[name]) for name in modules) * model.dtype.itemsize
    logger.info(
        "%s: what each of %d experts knows besides: %.1f MB in %d weights",
        *(weigher.method, weigher.n_experts, n_bytes / 1e6, len(modules)),
    )
    ran, rewritten = modules_run(model), list[hooks.Owner]()
    for name, held_by in tqdm(modules.items(), "Compressing experts", delay=2, unit=" weights"):
        (first, key), *_ = held_by
        device = first.get_parameter(key).device
        rewritten += hooks.attach(weigher.current, held_by, tensors[name].branches(device), ran)
    run_apart(model.base_model, weigher.current, rewritten)
    _become_routed(model, Routing(model, weigher, weigher.current, _task_of(plan)))
    gate = _gate(plan)
    weigher.by_task = gate.by_task
    examples = _Examples(plan, weigher, "Classification" in type(model).__name__)
    weigher.router = gate.learn(examples.features, plan.recipe.seed)


def follow(model: Any, routed: Any, task: str | None = None) -> None:
    """Route a live model, in place, like another that has its weights but for head and biases.

    What the experts know, the router and the weights of known requests are shared. ``task``: of
    all its requests, for a router by task.
    """
    base, current = routed.base_model, hooks.Current()
    rewritten = hooks.share(base, rewritten_in(base), current, model.base_model)
    run_apart(model.base_model, current, rewritten)
    _become_routed(model, Routing(model, routed.routing.weigher, current, task))
    model.routing.shared_expert = routed  # which computes the features: to be kept alive


def _become_routed(model: Any, routing: Routing) -> None:
    model.__class__ = type(type(model).__name__, (Routed, type(model)), {})
    model.routing = routing


def _task_of(plan: Plan) -> str | None:
    """Find the task that the head answers, if the recipe names it."""
    owners = ((task, entry.ref) for task, entry in plan.recipe.tasks.items())
    return next((task for task, ref in owners if ref == plan.recipe.donor), None)


class _Examples:
    """Compute the features from which the router learns."""

    def __init__(self, plan: Plan, weigher: Weigher, is_classifier: bool) -> None:
        self._recipe, self._weigher, self._is_classifier = plan.recipe, weigher, is_classifier

    def features(self, expert: int) -> Tensor:
        """Compute the features of one expert's examples: float32 [n, width]."""
        model = self._recipe.models[expert]
        data = self._recipe.data_of(model)
        if data is None:
            raise RecipeError(f"the router has no examples of {model.ref}; add data: to the recipe")
        prompts = [self._prompt(example, data.max_length) for example in data.examples()]
        logger.info("router: reading %d examples of %s", len(prompts), model.ref)
        return self._weigher.features(prompts)

    def _prompt(self, example: Example, max_length: int) -> Prompt:
        """Tokenize a request: a classifier's second text is part of it, a response is not."""
        if self._is_classifier:
            limit = min(max_length, self._tokenizer.model_max_length)
            return pair_row(self._tokenizer, example, limit)
        ids: Prompt = self._tokenizer(example.prompt)["input_ids"][:max_length]
        return ids

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(tokenizer_folder(self._recipe))


def _modules(plan: Plan, model: nn.Module) -> dict[str, list[hooks.Owner]]:
    """Find the modules that hold each weight with branches, by checkpoint name."""
    weights = [name for name, tensor in plan.tensors.items() if tensor.kernel is not None]
    routed = [name for name in weights if _branch_numel(plan.tensors[name])]
    return hooks.owners(model, weights, routed)


def _branch_numel(tensor: PlannedTensor) -> int:
    kernel = tensor.kernel
    return kernel.branch_numel(tensor.shape) if isinstance(kernel, Routes) else 0


def _gate(plan: Plan) -> Gate:
    """Find the gate of a merge, or `RecipeError` if its weights differ in theirs."""
    gates: list[Gate] = []
    for tensor in plan.tensors.values():
        if isinstance(tensor.kernel, Routes) and tensor.kernel.gate not in gates:
            gates.append(tensor.kernel.gate)
    if len(gates) > 1:
        raise RecipeError(
            f"{plan.method.name}: a request is routed once for the whole model: no gradients and "
            "no filters in the router's parameters"
        )
    return gates[0]
