"""Weigh requests: the shared expert reads them, the router weighs the experts by what it read.

A request is a prompt, or the text or pair of texts that a classifier is asked about. Its weights
are computed once, from the mean of the shared expert's last hidden states.
"""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from merge_plugins.api import Router
from merge_plugins.calibration.batches import by_length, padded
from merge_plugins.errors import MergeError
from merge_plugins.routing.hooks import Current

TOKENS = 4096
"""Most tokens in a batch for features, padding included; without logits it needs little memory."""
READ = ("input_ids", "token_type_ids")
"""Arguments of a model that say which tokens a request has."""
Prompt: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]
"""Token ids of a request, or arguments of `READ` by name: of equal names within one call."""


class Weigher:
    """Compute the expert weights of requests with a live shared expert; cached for later calls."""

    def __init__(self, model: Any, method: str, n_experts: int) -> None:
        self.method, self.n_experts = method, n_experts
        self.by_task = False
        self.router: Router | None = None
        self.current = Current()
        """What the hooks of the shared expert read."""
        self._base = weakref.ref(model.base_model)
        self._known: dict[bytes, Tensor] = {}

    def weigh(self, prompts: Sequence[Prompt], task: str | None = None) -> Tensor:
        """Compute each prompt's weights: float32 [prompts, N].

        ``task``: the harness's name of the task, for a router by task.
        """
        rows = [{name: [*tokens] for name, tokens in _named(each).items()} for each in prompts]
        keys = [hashlib.blake2b(f"{task}{row}".encode(), digest_size=16).digest() for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._known}
        if new:
            assert self.router is not None
            weights = self.router(_Requests(self, list(new.values()), task))
            self._known.update(zip(new, weights.float().cpu(), strict=True))
        return torch.stack([self._known[key] for key in keys])

    @torch.no_grad()
    def features(self, prompts: Sequence[Prompt]) -> Tensor:
        """Average the shared expert's last hidden state over each prompt: float32 [prompts, d]."""
        base, rows = self._base(), [_named(prompt) for prompt in prompts]
        assert base is not None
        lengths = [len(row["input_ids"]) for row in rows]
        if not all(lengths):
            raise MergeError("an empty prompt has no features to route by")
        options = {"use_cache": False} if "use_cache" in _accepted(base) else {}
        pad = getattr(base.config, "pad_token_id", None) or 0
        found: dict[int, Tensor] = {}
        self.current.only_shared = True
        try:
            for some in by_length(lengths, TOKENS):
                batch = padded([rows[i] for i in some], max(0, pad))  # LLaMA 1 sets -1
                inputs = {name: tensor.to(base.device) for name, tensor in batch.items()}
                states, mask = base(**inputs, **options)[0], inputs["attention_mask"]
                share = (mask / mask.sum(1, keepdim=True)).to(states.device)
                means = torch.einsum("bs,bsd->bd", share, states.float())
                found.update(zip(some, means, strict=True))
        finally:
            self.current.only_shared = False
        return torch.stack([found[i] for i in range(len(rows))])


class _Requests:
    """Compute features of the prompts of one task on demand; see `merge_plugins.api.Requests`."""

    def __init__(self, weigher: Weigher, prompts: Sequence[Prompt], task: str | None) -> None:
        self._weigher, self._prompts, self._task = weigher, prompts, task

    def __len__(self) -> int:
        return len(self._prompts)

    @cached_property
    def features(self) -> Tensor:
        return self._weigher.features(self._prompts)

    @property
    def task(self) -> str:
        if self._task is None:
            raise MergeError(
                "router: oracle needs the task of each request, which lm-eval says; elsewhere "
                "hold its weights: with model.routed(model.routing.weigh([[]], task=<name>)):"
            )
        return self._task


def _named(prompt: Prompt) -> Mapping[str, Sequence[int]]:
    return prompt if isinstance(prompt, Mapping) else {"input_ids": prompt}


def _accepted(module: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(module.forward).parameters
