"""What a routed live model has beside its class: the weights of the requests that it is called on.

Weights are decided where the encoder or decoder itself is called, so that any head above it, also
one of another task, sees what the experts add. They are used for all tokens that follow; a batch
may mix requests of any kind.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.routing.continuous import ENDS, PackedRequests, settings_for_routing
from merge_plugins.routing.hooks import Current
from merge_plugins.routing.requests import READ, Prompt, Weigher

PAST = ("past_key_values", "cache")
"""Arguments that hold keys and values of tokens before; the second is newer."""


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
        with self.routing.deciding({"input_ids": ids}, kwargs.get("attention_mask")):
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def generate_batch(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate in continuous batches, each prompt with weights computed from it."""
        held = self.routing.current.held
        if held is not None and len(held) not in (1, len(inputs)):
            raise MergeError(f"weights of {len(held)} requests are held, there are {len(inputs)}")
        return super().generate_batch(inputs, *args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(
        self, generation_config: Any = None, continuous_batching_config: Any = None, **kwargs: Any
    ) -> Any:
        """Return a manager of continuous batches, which weighs each request when it is added."""
        settings = settings_for_routing(continuous_batching_config)
        manager = super().init_continuous_batching(  # type: ignore[misc]
            generation_config, settings, **kwargs
        )
        self.routing.pack(manager)
        return manager

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise `RecipeError`: a checkpoint would have the shared expert without the others."""
        raise RecipeError(f"no checkpoint can hold {self.routing.method}: it has a router")


class Routing:
    """Pass the weights of requests to the hooks of a live model."""

    def __init__(
        self, model: Any, weigher: Weigher, current: Current, task: str | None = None
    ) -> None:
        self.weigher, self.current, self.task = weigher, current, task
        self._packed: PackedRequests | None = None
        self._of_cache: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()
        for part in dict.fromkeys((model, model.base_model)):
            before = partial(self._before, inspect.signature(part.forward))
            part.register_forward_pre_hook(before, with_kwargs=True)
            part.register_forward_hook(self._after, always_call=True)

    @property
    def method(self) -> str:
        """Name of the merge method."""
        return self.weigher.method

    @property
    def by_task(self) -> bool:
        """Whether the router goes by the name of a task, not by the prompts."""
        return self.weigher.by_task

    def weigh(self, prompts: Sequence[Prompt], task: str | None = None) -> Tensor:
        """Compute each prompt's weights; see `Weigher.weigh`. A model of one task knows it."""
        return self.weigher.weigh(prompts, self.task if task is None else task)

    def pack(self, manager: Any) -> None:
        """Weigh the requests of a manager of continuous batches."""
        if self._packed is None or self._packed.manager is not manager:
            self._packed = PackedRequests(manager, self._one)
        self._packed.begin()

    def _one(self, prompt: Sequence[int], index: int) -> Tensor:
        """Return the weights of one request: those held, or computed from its prompt: [N]."""
        held = self.current.held
        if held is None:
            return self.weigh([[*prompt]])[0]
        if len(held) > 1 and index >= len(held):
            raise MergeError(f"weights of {len(held)} requests are held, this is one more")
        return held[index if len(held) > 1 else 0]

    @contextmanager
    def holding(self, weights: Tensor) -> Iterator[None]:
        """Use the given weights, [N] or [requests, N], until the end of the block."""
        n_experts = self.weigher.n_experts
        if weights.shape[-1] != n_experts or weights.ndim not in (1, 2):
            raise MergeError(
                f"routed() takes [{n_experts}] weights, or that many for each request; "
                f"got {list(weights.shape)}"
            )
        current, before = self.current, self.current.held
        current.held = weights.view(-1, n_experts)
        try:
            yield
        finally:
            current.held = before

    @contextmanager
    def deciding(self, tokens: Mapping[str, Tensor | None], mask: Tensor | None) -> Iterator[None]:
        """Use the given prompts' weights until the end of the block, unless some are in use."""
        if self.current.held is not None or self.current.only_shared:
            yield
        else:
            with self.holding(self._of(tokens, mask)):
                yield

    def _of(self, tokens: Mapping[str, Tensor | None], mask: Tensor | None) -> Tensor:
        """Compute the weights of each row of a batch; without a mask, every token counts."""
        each = ((name, tokens.get(name)) for name in READ)
        given = {name: rows.cpu() for name, rows in each if rows is not None}
        if "input_ids" not in given:
            raise MergeError(
                f"{self.method} reads prompts as input_ids; for other inputs hold weights with "
                "model.routed(weights)"
            )
        ids = given["input_ids"]
        real = (torch.ones_like(ids) if mask is None else mask).bool().cpu()
        return self.weigh(
            [
                {name: rows[i][keep].tolist() for name, rows in given.items()}
                for i, keep in enumerate(real)
            ]
        )

    def _before(
        self,
        signature: inspect.Signature,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        if self.current.only_shared or self.current.within not in (None, module):
            return  # computing features, or inside a call whose weights are decided
        self.current.within = module
        given = signature.bind_partial(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        ids = given.get("input_ids")
        past = next((given[name] for name in PAST if given.get(name) is not None), None)
        held = self.current.held
        if self._packed is not None and given.get(ENDS) is not None:
            self.current.tokens = self._packed.of_tokens(given)
            weights = self.current.tokens[0]
        elif held is not None:
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
            weights = self._of(given, given.get("attention_mask"))
        self.current.weights = weights

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.current.only_shared or module is not self.current.within:
            return
        cache = getattr(output, "past_key_values", None)
        if self.current.weights is not None and hasattr(cache, "get_seq_length"):
            self._of_cache[cache] = self.current.weights
        self.current.within = self.current.weights = self.current.tokens = None

    def _for_rows(self, weights: Tensor, n_rows: int) -> Tensor:
        """Repeat weights for the beams and samples of each request, which are adjacent rows."""
        if n_rows % len(weights):
            raise MergeError(f"weights of {len(weights)} requests are held, the batch has {n_rows}")
        return weights.repeat_interleave(n_rows // len(weights), dim=0)
