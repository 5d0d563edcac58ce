"""Weigh experts for each request: fixed, by task, by nearest centroid, or by an MLP."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from merge_plugins.api import Gate, PerExpert, PerExpertText, Requests, Router, parameter
from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.routing import router_network

RouterName = Literal["mlp", "centroid", "fixed", "oracle"]


def router_field(default: RouterName) -> Any:
    """Declare the parameter ``router``: the kind of gate."""
    doc = "what weighs the experts: mlp and centroid learn from data:, oracle goes by task"
    return parameter(default, doc=doc)


def router_weight_field() -> Any:
    """Declare the parameter ``router_weight``: each expert's weight under ``router: fixed``."""
    doc = "fixed: each expert's part of the weight"
    return parameter(1.0, doc=doc, alias=("router_weights",))


def tasks_field() -> Any:
    """Declare the parameter ``tasks``: task names or patterns that each expert handles."""
    doc = "oracle: the expert's tasks, joined by '|': gsm8k|mmlu_*; task: of its entry unless given"
    return parameter("", doc=doc, follows="task")


def top_k_field() -> Any:
    """Declare the parameter ``top_k``: the most experts with a nonzero weight per request."""
    return parameter(None, doc="experts a request may have; the strongest are kept")


def gate_of(
    router: RouterName, weights: PerExpert, tasks: PerExpertText, top_k: int | None
) -> Gate:
    """Build the gate of a routed method's parameters; raises `ParameterError`."""
    if top_k is not None and top_k < 1:
        raise ParameterError(f"top_k is 1 or more; got {top_k}")
    if router == "oracle":
        if not all(tasks):
            raise ParameterError(
                "router oracle needs the tasks of every expert; write in each model's entry task: "
                "<name> or parameters: {tasks: <name>}, in model_args tasks=<name>+<name>+…"
            )
        return Oracle(tasks)
    if router == "fixed":
        total = sum(weights)
        if total <= 0 or min(weights) < 0:
            raise ParameterError(f"router_weight is 0 or more, and not all 0; got {list(weights)}")
        return Fixed(tuple(weight / total for weight in weights), top_k)
    return (Centroid if router == "centroid" else Mlp)(len(weights), top_k)


def learns(method: Any) -> bool:
    """Whether a routed method's gate learns from examples."""
    return isinstance(method.gate, Centroid | Mlp)


def strongest(weights: Tensor, top_k: int | None) -> Tensor:
    """Keep each row's ``top_k`` largest weights, scaled to the row's former sum."""
    if top_k is None or top_k >= weights.shape[-1]:
        return weights
    kept = weights.topk(top_k, dim=-1).indices
    left = torch.zeros_like(weights).scatter(-1, kept, weights.gather(-1, kept))
    scale = weights.sum(-1, keepdim=True) / left.sum(-1, keepdim=True)
    return left * torch.where(left.sum(-1, keepdim=True) == 0, 1.0, scale)


@dataclass(frozen=True)
class Fixed:
    """Weigh experts the same for every request."""

    weights: PerExpert
    top_k: int | None = None
    by_task = False

    def learn(self, features: Callable[[int], Tensor], seed: int) -> Router:
        """Build the router; needs no examples."""
        weights = strongest(torch.tensor(self.weights), self.top_k)
        return lambda requests: weights.repeat(len(requests), 1)


@dataclass(frozen=True)
class Oracle:
    """Give all weight to the expert that handles the request's task."""

    tasks: tuple[str, ...]
    """Task names or patterns (``mmlu_*``) of each expert, several joined by ``|``."""
    by_task = True

    def learn(self, features: Callable[[int], Tensor], seed: int) -> Router:
        """Return this gate, which is its own router; needs no examples."""
        return self

    def __call__(self, requests: Requests) -> Tensor:
        """Weigh the experts: float32 one-hot [requests, N], or `RecipeError` unless one fits."""
        patterns = [[part.strip() for part in tasks.split("|")] for tasks in self.tasks]
        chosen = [
            expert
            for expert, own in enumerate(patterns)
            if any(fnmatch.fnmatchcase(requests.task, pattern) for pattern in own)
        ]
        if len(chosen) != 1:
            whose = f"{len(chosen)} experts" if chosen else "no expert"
            raise RecipeError(
                f"router: oracle: task {requests.task!r} belongs to {whose}; the experts' tasks "
                f"are {', '.join(map(repr, self.tasks))}. Name it in one expert's parameters: "
                f"{{tasks: {requests.task}}}"
            )
        weights = one_hot(torch.tensor(chosen), len(self.tasks)).float()
        return weights.repeat(len(requests), 1)


@dataclass(frozen=True)
class Centroid:
    """Weigh experts by the distance of a request to the mean of their examples.

    No training: the weights are the posterior of equal spherical Gaussians around the means, with
    the variance of the examples. They are nearly one-hot, except between two experts.
    """

    n_experts: int
    top_k: int | None = None
    by_task = False

    def learn(self, features: Callable[[int], Tensor], seed: int) -> Router:
        """Compute the means and variance of the examples and build the router."""
        examples = [features(expert) for expert in range(self.n_experts)]
        means = torch.stack([rows.mean(0) for rows in examples])
        scatter = torch.cat([rows - mean for rows, mean in zip(examples, means, strict=True)])
        variance = scatter.square().mean().clamp(min=1e-12)

        def router(requests: Requests) -> Tensor:
            off = (requests.features[:, None] - means).square().sum(-1)  # [requests, N]
            return strongest((-off / (2 * variance)).softmax(-1), self.top_k)

        return router


@dataclass(frozen=True)
class Mlp:
    """Weigh experts by a small network, trained on features when the model is loaded.

    See `merge_plugins.routing.router_network`.
    """

    n_experts: int
    top_k: int | None = None
    by_task = False

    def learn(self, features: Callable[[int], Tensor], seed: int) -> Router:
        """Train the network on the examples and build the router."""
        examples: Sequence[Tensor] = [features(expert) for expert in range(self.n_experts)]
        logits = router_network.trained(examples, seed)
        return lambda requests: strongest(logits(requests.features).softmax(-1), self.top_k)
