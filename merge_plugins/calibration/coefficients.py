"""Learn coefficients of task vectors on a live model that is merged again in every step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from merge_plugins.api import Batch, PerExpert, Slot, Sources, Weight
from merge_plugins.calibration.batches import UNSCORED, logits_of
from merge_plugins.errors import RecipeError
from merge_plugins.notice import tell

DIGITS = 6
"""Decimals kept of a learned coefficient: few enough to hide the order of float32 sums."""


logger = logging.getLogger(__name__)


def blended(slot: Slot, coefficients: Sequence[float]) -> Tensor:
    """Compute base + sum of coefficient times task vector: float32 [*shape]."""
    total = slot.base.to(torch.float32, copy=True)
    for delta, coefficient in zip(slot.deltas(), coefficients, strict=True):
        total.add_(delta, alpha=coefficient)
    return total


def mean_entropy(module: Any, batch: Batch) -> Tensor:
    """Compute the mean Shannon entropy of a model's predictions, in nats: a scalar.

    A classifier predicts a class per text, a causal model the next token wherever that token has a
    label; the labels' values are not used. Raises `RecipeError` for any other model.
    """
    logits = logits_of(module, batch)
    if logits is None or logits.shape[-1] == 1:
        raise RecipeError(
            "entropy is of a classifier with two classes or more, or of a causal language model; "
            f"{type(module).__name__} is neither. Choose a method that needs no data."
        )
    if logits.ndim == 3:
        logits = logits[:, :-1][batch["labels"][:, 1:] != UNSCORED]
    log_p = logits.float().log_softmax(-1)
    entropy: Tensor = (log_p.exp() * log_p).sum().neg() / max(1, len(log_p))
    return entropy


@dataclass(frozen=True)
class Descent:
    """Minimise a loss on batches by Adam over the coefficients of N task vectors, in [0, 1]."""

    loss: Callable[[Any, Batch], Tensor]
    initial: float
    steps: int
    learning_rate: float
    by_weight: bool
    """Learn one coefficient per weight and expert; otherwise one per expert."""

    def __call__(self, sources: Sources) -> dict[str, PerExpert]:
        """Learn the coefficients of every weight, one per expert, by checkpoint name.

        A step takes the next batch of every expert's data and sums their losses; classifiers read
        theirs with their own heads, if those are not merged. Holds one live model and its
        gradients, in float32: a coefficient's gradient is the dot product of its task vector, read
        from disk, with the gradient of the merged weight. Weights that the live model does not hold
        as a parameter of its own keep the initial coefficient.
        """
        from merge_plugins.hf.experts import stored_whole  # seconds: imports transformers

        slots = {slot.name: slot for slot in sources.slots()}
        n_experts = len(sources.names)
        module: Any = sources.module(0)
        names = stored_whole(module, slots)
        classifies = "Classification" in type(module).__name__
        heads = _own_weights(
            sources, [live for name, live in names.items() if classifies and name not in slots]
        )
        module = sources.module(0)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        live = {name: parameters[names[name]] for name in slots if name in names}
        self._announce(slots, live, n_experts)
        rows = len(slots) if self.by_weight else 1
        raw = torch.full((rows, n_experts), self.initial, requires_grad=True)
        if live:
            batches = [list(sources.batches(expert)) for expert in range(n_experts)]
            self._descend(module, list(zip(heads, batches, strict=True)), slots, live, raw)
        learned = raw.detach().clamp(0, 1).double().expand(len(slots), -1).tolist()
        each = (tuple(round(x, DIGITS) for x in row) for row in learned)
        return dict(zip(slots, each, strict=True))

    @torch.enable_grad()
    def _descend(
        self,
        module: Any,
        experts: Sequence[tuple[Mapping[str, Tensor], Sequence[Batch]]],
        slots: Mapping[str, Weight],
        live: Mapping[str, Tensor],
        raw: Tensor,
    ) -> None:
        module.requires_grad_(False)
        for weight in live.values():
            weight.data = torch.empty_like(weight)  # new memory: the old may be the file's pages
            weight.requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=self.learning_rate)
        shown = tqdm(range(self.steps), desc="Learning coefficients", unit="step", delay=2)
        for step in shown:
            used = raw.clamp(0, 1)
            rows = dict(zip(slots, used.detach().expand(len(slots), -1).tolist(), strict=True))
            for name, weight in live.items():
                _write(slots[name], rows[name], weight)
            total = 0.0
            for own, some in experts:
                for name, weight in own.items():
                    module.get_parameter(name).data = weight
                loss = self.loss(module, some[step % len(some)])
                total += loss.item()
                loss.backward()  # type: ignore[no-untyped-call]
            dots = torch.stack([_dots(slot, live.get(name)) for name, slot in slots.items()])
            optimizer.zero_grad()
            used.backward(dots if self.by_weight else dots.sum(0, keepdim=True))  # type: ignore[no-untyped-call]
            optimizer.step()
            shown.set_postfix(loss=f"{total:.4f}")
        logger.info("coefficients after %d steps: %s", self.steps, _spelled(raw))

    def _announce(
        self, slots: Mapping[str, Weight], live: Mapping[str, Tensor], n_experts: int
    ) -> None:
        size = 8 * sum(weight.numel() for weight in live.values()) / 1e9
        n = n_experts * (len(live) if self.by_weight else 1)
        tell(
            f"learning {n} coefficients: {self.steps} steps of a pass forward and back on a batch "
            f"of each of {n_experts} models' data; one model and its gradients, {size:.3g} GB in "
            "float32."
        )
        absent = [name for name in slots if name not in live]
        if absent:
            logger.warning(
                "%d of %d weights keep the coefficient %g, first %s: the live model has no weight "
                "of that name. The model's code fuses or does not use them.",
                *(len(absent), len(slots), self.initial, absent[0]),
            )


def _own_weights(sources: Sources, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Copy some parameters of every expert; leaves the last one's model in memory."""
    if not names:
        return [{} for _ in sources.names]
    each = []
    for expert in range(len(sources.names)):
        module = sources.module(expert)
        each.append({name: module.get_parameter(name).detach().clone() for name in names})
    return each


def _write(slot: Weight, coefficients: Sequence[float], weight: Tensor) -> None:
    """Merge one weight, block by block, into the live model's parameter."""

    def write(block: Slot) -> None:
        region = block.box
        region.of(weight.detach()).copy_(blended(block, coefficients))

    slot.map_blocks(write)


def _dots(slot: Weight, weight: Tensor | None) -> Tensor:
    """Compute the dot products of a gradient with the task vectors, [N]; drop the gradient."""
    if weight is None or weight.grad is None:
        return torch.zeros(slot.n_experts)
    gradient, weight.grad = weight.grad.cpu(), None

    def dots(block: Slot) -> Tensor:
        region = block.box
        products = block.deltas() * region.of(gradient)
        return products.unsqueeze(-1).flatten(1).sum(1, dtype=torch.float64)

    return torch.stack(slot.map_blocks(dots)).sum(0).float()


def _spelled(raw: Tensor) -> str:
    """Format the mean of each expert's coefficients, with their range if there are several."""
    rows = raw.detach().clamp(0, 1).T
    return ", ".join(
        f"{row.mean():.3f}" + (f" ({row.min():.3f} to {row.max():.3f})" if len(row) > 1 else "")
        for row in rows
    )
