"""Train the router network of Twin-Merging, without torch's global random generator.

Widths d, 2d, 2d, T; batch normalisation, leaky ReLU and dropout 0.5 after both hidden layers; cross
entropy; AdamW without weight decay at 5e-4, falling linearly to 0; 50 epochs of batches of 1024
[Lu et al. 2024, released code]. Smaller batches where there are few examples: an epoch has at least
`STEPS` steps, where the code, with tens of thousands, has forty. The code keeps the epoch that is
best on the test set; here the best on a fifth of the examples, held back, is kept.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, cross_entropy, leaky_relu, linear

from merge_plugins.errors import DataError

EPOCHS, STEPS, RATE, DROPOUT, HELD_BACK = 50, 8, 5e-4, 0.5, 0.2
SMALLEST, LARGEST = 16, 1024
"""Smallest and largest batch, in examples."""


logger = logging.getLogger(__name__)


Logits = Callable[[Tensor], Tensor]


@torch.enable_grad()
def trained(examples: Sequence[Tensor], seed: int) -> Logits:
    """Train a network from features, float32 [B, d], to logits [B, T].

    ``examples``: the features of each of T experts' examples, [n, d]. Runs on their device: seconds
    on a GPU for the width of a 7B model. Deterministic given seed, device and thread count. Raises
    `DataError` if an expert has too few examples to hold any back.
    """
    random = torch.Generator().manual_seed(seed)
    (features, labels), (held_features, held_labels) = _split(examples, random)
    size = min(max(SMALLEST, len(labels) // STEPS), LARGEST)
    network = Network(features.shape[1], len(examples), random, features.device)
    best, best_hits, n_steps = network.state(), -1, EPOCHS * math.ceil(len(labels) / size)
    optimizer = torch.optim.AdamW(network.weights, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    for _ in range(EPOCHS):
        for index in torch.split(torch.randperm(len(labels), generator=random), size):
            if len(index) == 1:
                continue  # its variance is zero, by which batch normalisation divides
            loss = cross_entropy(network.training(features[index], random), labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        hits = int((network(held_features).argmax(-1) == held_labels).sum())
        if hits >= best_hits:  # the last of equally good ones: it has trained longest
            best, best_hits = network.state(), hits
    network.restore(best)
    logger.info("router: %d of %d held-back examples right", best_hits, len(held_labels))
    return network


def _split(
    examples: Sequence[Tensor], random: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split off a fifth of each expert's examples: (features, labels) of the rest, and of these."""
    seen: list[tuple[Tensor, Tensor]] = []
    held: list[tuple[Tensor, Tensor]] = []
    for expert, rows in enumerate(examples):
        if len(rows) < 2:
            raise DataError(
                f"router: mlp needs 2 examples per expert or more, expert {expert + 1} has "
                f"{len(rows)}; add data, or write router: centroid"
            )
        order = torch.randperm(len(rows), generator=random)
        n_held = max(1, int(HELD_BACK * len(rows)))
        for part, index in ((held, order[:n_held]), (seen, order[n_held:])):
            labels = torch.full((len(index),), expert, device=rows.device)
            part.append((rows[index], labels))
    return _joined(seen), _joined(held)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([rows for rows, _ in parts]), torch.cat([labels for _, labels in parts])


class Network:
    """Compute logits by three linear layers, with batch normalisation and dropout."""

    def __init__(
        self, width: int, n_classes: int, random: torch.Generator, device: torch.device
    ) -> None:
        sizes = (width, 2 * width, 2 * width, n_classes)
        self.weights: list[Tensor] = []
        for n_in, n_out in itertools.pairwise(sizes):
            bound = 1 / math.sqrt(n_in)  # as torch initializes its own layers
            for shape in ((n_out, n_in), (n_out,)):
                weight = torch.empty(shape).uniform_(-bound, bound, generator=random)
                self.weights.append(weight.to(device).requires_grad_())
        for size in sizes[1:3]:
            self.weights.append(torch.ones(size, device=device, requires_grad=True))
            self.weights.append(torch.zeros(size, device=device, requires_grad=True))
        self.running = [
            (torch.zeros(size, device=device), torch.ones(size, device=device))
            for size in sizes[1:3]
        ]

    def state(self) -> list[Tensor]:
        """Copy all tensors that training changes."""
        return [tensor.detach().clone() for tensor in self._tensors()]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Overwrite all tensors with a `state`."""
        with torch.no_grad():
            for tensor, before in zip(self._tensors(), state, strict=True):
                tensor.copy_(before)

    def training(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Compute logits with batch statistics and dropout, for gradients."""
        return self._logits(x, random)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits [B, T] with running statistics, without dropout or gradients."""
        return self._logits(x, None)

    def _logits(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        for layer, running in enumerate(self.running):
            weight, bias = self.weights[2 * layer : 2 * layer + 2]
            scale, shift = self.weights[6 + 2 * layer : 8 + 2 * layer]
            x = linear(x, weight, bias)
            x = leaky_relu(batch_norm(x, *running, scale, shift, random is not None))
            if random is not None:
                kept = torch.rand(x.shape, generator=random) >= DROPOUT
                x = x * kept.to(x.device) / (1 - DROPOUT)
        return linear(x, *self.weights[4:6])

    def _tensors(self) -> list[Tensor]:
        return [*self.weights, *(tensor for pair in self.running for tensor in pair)]
