"""Route a live model: weigh its experts for each request.

A request is a prompt. Its weights are computed once, from the shared expert's last hidden state,
and are used for all tokens that follow; a batch may mix requests of any kind.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from merge_plugins.api import Gate, Router, Routes
from merge_plugins.engine import Merge
from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.hf.experts import load_tokenizer
from merge_plugins.planning import Plan, PlannedTensor
from merge_plugins.routing import hooks
from merge_plugins.routing.hooks import Current
from merge_plugins.tokenizer import tokenizer_folder

TOKENS = 4096
"""Most tokens in a batch for features, padding included; without logits it needs little memory."""


logger = logging.getLogger(__name__)


Prompt = Sequence[int]
PARALLEL = ("tp_plan", "tp_size", "device_mesh", "distributed_config")


class Routed:
    """Add routing to a transformers model class."""

    routing: Routing

    @contextmanager
    def routed(self, weights: Tensor | Sequence[float]) -> Iterator[None]:
        """Use the given weights, [N] or [requests, N], for every call inside the block."""
        with self.routing.holding(torch.as_tensor(weights, dtype=torch.float32)):
            yield

    def generate(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Generate with weights computed from the prompts."""
        ids = kwargs.get("input_ids") if inputs is None else inputs
        with self.routing.deciding(ids, kwargs.get("attention_mask")):
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise `RecipeError`: a checkpoint would have the shared expert without the others."""
        raise RecipeError(f"no checkpoint can hold {self.routing.method}: it has a router")


class Routing:
    """Compute the weights of requests and pass them to the hooks of a live model."""

    def __init__(self, model: Any, method: str, n_experts: int) -> None:
        self.method = method
        self.by_task = False
        self.router: Router | None = None
        self.current = Current()
        self._model, self._n_experts = weakref.ref(model), n_experts
        self._known: dict[bytes, Tensor] = {}
        self._of_cache: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()
        self._signature = inspect.signature(model.forward)
        self.is_classifier = "Classification" in type(model).__name__
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, always_call=True)

    def weigh(self, prompts: Sequence[Prompt], task: str | None = None) -> Tensor:
        """Compute each prompt's weights: float32 [prompts, N]; cached for later calls.

        ``task``: the harness's name of the task, for a router by task.
        """
        keys = [hashlib.blake2b(f"{task}{[*p]}".encode(), digest_size=16).digest() for p in prompts]
        new = {key: p for key, p in zip(keys, prompts, strict=True) if key not in self._known}
        if new:
            assert self.router is not None
            weights = self.router(_Requests(self, list(new.values()), task))
            self._known.update(zip(new, weights.float().cpu(), strict=True))
        return torch.stack([self._known[key] for key in keys])

    @torch.no_grad()
    def features(self, prompts: Sequence[Prompt]) -> Tensor:
        """Average the shared expert's last hidden state over each prompt: float32 [prompts, d]."""
        model = self._model()
        assert model is not None
        base = model.base_model
        accepted = inspect.signature(base.forward).parameters
        options = {"use_cache": False} if "use_cache" in accepted else {}
        pad = getattr(model.config, "pad_token_id", None) or 0
        found: dict[int, Tensor] = {}
        self.current.only_shared = True
        try:
            for some in _batches([len(prompt) for prompt in prompts]):
                mask = _mask([len(prompts[i]) for i in some])
                ids = torch.full(mask.shape, pad)
                ids[mask.bool()] = torch.tensor([t for i in some for t in prompts[i]])
                mask = mask.to(model.device)
                states = base(input_ids=ids.to(model.device), attention_mask=mask, **options)[0]
                share = (mask / mask.sum(1, keepdim=True)).to(states.device)
                means = torch.einsum("bs,bsd->bd", share, states.float())
                found.update(zip(some, means, strict=True))
        finally:
            self.current.only_shared = False
        return torch.stack([found[i] for i in range(len(prompts))])

    @contextmanager
    def holding(self, weights: Tensor) -> Iterator[None]:
        """Use the given weights, [N] or [requests, N], until the end of the block."""
        if weights.shape[-1] != self._n_experts or weights.ndim not in (1, 2):
            raise MergeError(
                f"routed() takes [{self._n_experts}] weights, or that many for each request; "
                f"got {list(weights.shape)}"
            )
        current, before = self.current, self.current.held
        current.held = weights.view(-1, self._n_experts)
        try:
            yield
        finally:
            current.held = before

    @contextmanager
    def deciding(self, ids: Tensor | None, mask: Tensor | None) -> Iterator[None]:
        """Use the given prompts' weights until the end of the block, unless some are in use."""
        if self.current.held is not None or self.current.only_shared:
            yield
        else:
            with self.holding(self._of(ids, mask)):
                yield

    def _of(self, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """Compute the weights of each row of a batch; without a mask, every token counts."""
        if ids is None:
            raise MergeError(
                f"{self.method} reads prompts as input_ids; for other inputs hold weights with "
                "model.routed(weights)"
            )
        real = (torch.ones_like(ids) if mask is None else mask).bool().cpu()
        return self.weigh([row[keep].tolist() for row, keep in zip(ids.cpu(), real, strict=True)])

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.current.only_shared:
            return  # computing features: a model without a head is its own base model
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        ids, past = given.get("input_ids"), given.get("past_key_values")
        held = self.current.held
        if held is not None:
            x = given.get("inputs_embeds") if ids is None else ids
            n_rows = len(held) if x is None else x.shape[0]
            weights = self._for_rows(held, n_rows)
        elif past is not None and (isinstance(past, tuple) or past.get_seq_length()):
            if isinstance(past, tuple) or past not in self._of_cache:
                raise MergeError(
                    "past_key_values that this model did not return: pass the whole prompt first, "
                    "or hold weights with model.routed(weights)"
                )
            weights = self._of_cache[past]
        else:
            weights = self._of(ids, given.get("attention_mask"))
        self.current.weights = weights

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if self.current.weights is not None and hasattr(cache, "get_seq_length"):
            self._of_cache[cache] = self.current.weights
        if not self.current.only_shared:
            self.current.weights = None

    def _for_rows(self, weights: Tensor, n_rows: int) -> Tensor:
        """Repeat weights for the beams and samples of each request, which are adjacent rows."""
        if n_rows % len(weights):
            raise MergeError(f"weights of {len(weights)} requests are held, the batch has {n_rows}")
        return weights.repeat_interleave(n_rows // len(weights), dim=0)


class _Requests:
    """Compute features of the prompts of one task on demand; see `merge_plugins.api.Requests`."""

    def __init__(self, routing: Routing, prompts: Sequence[Prompt], task: str | None) -> None:
        self._routing, self._prompts, self._task = routing, prompts, task

    def __len__(self) -> int:
        return len(self._prompts)

    @cached_property
    def features(self) -> Tensor:
        return self._routing.features(self._prompts)

    @property
    def task(self) -> str:
        if self._task is None:
            raise MergeError(
                "router: oracle needs the task of each request, which lm-eval says; elsewhere "
                "hold its weights: with model.routed(model.routing.weigh([[]], task=<name>)):"
            )
        return self._task


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group prompts by length into batches, lists of positions, of `TOKENS` tokens at most."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not lengths[i]:
            raise MergeError("an empty prompt has no features to route by")
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _mask(lengths: Sequence[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


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
    routing = Routing(model, plan.method.name, len(plan.experts))
    modules, tensors = _modules(plan, model), merge.tensors()
    n_bytes = sum(_branch_numel(plan.tensors[name]) for name in modules) * model.dtype.itemsize
    logger.info(
        "%s: what each of %d experts knows besides: %.1f MB in %d weights",
        *(routing.method, len(plan.experts), n_bytes / 1e6, len(modules)),
    )
    for name, held_by in tqdm(modules.items(), "Compressing experts", delay=2, unit=" weights"):
        (first, key), *_ = held_by
        device = first.get_parameter(key).device
        hooks.attach(routing.current, held_by, tensors[name].branches(device))
    model.__class__ = type(type(model).__name__, (Routed, type(model)), {})
    model.routing = routing
    examples = _Examples(plan, routing)
    gate = _gate(plan)
    routing.by_task = gate.by_task
    routing.router = gate.learn(examples.features, plan.recipe.seed)


class _Examples:
    """Compute the features from which the router learns."""

    def __init__(self, plan: Plan, routing: Routing) -> None:
        self._recipe, self._routing = plan.recipe, routing

    def features(self, expert: int) -> Tensor:
        """Compute the features of one expert's examples: float32 [n, width]."""
        model = self._recipe.models[expert]
        data = self._recipe.data_of(model)
        if data is None:
            raise RecipeError(f"the router has no examples of {model.ref}; add data: to the recipe")
        prompts = []
        for example in data.examples():
            # a classifier's second text is part of its input, a response is not
            second = example.response or None if self._routing.is_classifier else None
            prompts.append(self._tokenizer(example.prompt, second)["input_ids"][: data.max_length])
        logger.info("router: reading %d examples of %s", len(prompts), model.ref)
        return self._routing.features(prompts)

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
