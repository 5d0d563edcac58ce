"""A method with the parameters that it is tried with, and what it is tried on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from merge_plugins.api import Example, Pooling, Prepares, Slot, Weight
from merge_plugins.errors import RecipeError
from merge_plugins.parallel import Place
from merge_plugins.plugins import Method, registry
from merge_plugins.testing import in_memory, living


@dataclass(frozen=True)
class Case:
    """A method with parameters, as a recipe could set them."""

    method: Method
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """By canonical name, with all that have no default; a tuple has a value for each expert."""
    on_base: bool = False
    """Whether there is a base for a method that need not have one."""

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.method.name}({given}){' on a base' * self.on_base}"

    @property
    def has_base(self) -> bool:
        """Whether kernels receive a base."""
        return self.method.needs_base or self.on_base

    @property
    def n_experts(self) -> int:
        """Number of experts: three, or as near as the method takes."""
        return max(self.method.min_experts, min(3, self.method.max_experts or 3))

    def kernel(self) -> Any:
        """Build the method's dataclass for `n_experts` experts."""
        values = {}
        for parameter in self.method.parameters.values():
            value = self.parameters.get(parameter.name, parameter.default)
            if parameter.per_expert:
                each = value if isinstance(value, tuple) else (value,) * self.n_experts
                value = each[: self.n_experts]
            values[parameter.field] = value
        return self.method.factory(**values)

    def merge(self, *slots: Slot, place: Place | None = None) -> list[Tensor]:
        """Merge whole weights in memory, as the engine would.

        ``place``: into which blocks they are cut to be measured.
        """
        kernel = self.kernel()
        if isinstance(kernel, Prepares):
            kernel = kernel.prepare(InMemory(slots, place)) or kernel
        return [in_memory.merged(kernel, slot, place) for slot in slots]

    def measured(self, slot: Slot) -> Mapping[str, Tensor]:
        """Return what the method measures of a whole weight."""
        return in_memory.measured(self.kernel(), slot)

    def slot(self, base: Tensor, *experts: Tensor, name: str = "w", seed: int = 0) -> Slot:
        """Make a slot of as many models as the method takes, with made-up statistics."""
        maybe_base, experts = base if self.has_base else None, experts[: self.n_experts]
        asked = self.method.statistics(self.kernel())
        stats = {stat: tuple(statistic(stat, expert) for expert in experts) for stat in asked}
        return Slot(name, maybe_base, experts, stats, seed=seed)


def statistic(name: str, expert: Tensor) -> Tensor | None:
    """Make up a calibration statistic of a weight, which depends on nothing but its values."""
    if registry().statistics[name].elementwise:
        return (1e-3 * expert.float().sin().square() + 1e-6).reshape(expert.shape)
    if expert.ndim != 2:
        return None  # of no linear layer
    seed = int(1000 * expert.double().abs().sum())
    inputs = torch.randn(99, expert.shape[1], generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs / 99


class InMemory:
    """What a method that looks at the whole model sees; the live models are not the slots'."""

    def __init__(self, slots: Sequence[Slot], place: Place | None = None) -> None:
        self._slots, self._place = slots, place
        self.seed = slots[0].seed
        self.names: Sequence[str] = [f"expert {i}" for i, _ in enumerate(slots[0].experts)]

    def slots(self) -> Iterator[Weight]:
        """Iterate over the weights."""
        return (slot.weight(self._place) for slot in self._slots)

    def module(self, expert: int) -> Any:
        """Build an expert, the method's own to change."""
        return living.model(expert)

    def tokenizer(self, expert: int) -> Any:
        """Return the tokenizer of all experts."""
        return living.tokenizer()

    def pooling(self) -> Pooling:
        """Raise `RecipeError`: these models embed nothing."""
        raise RecipeError("the models that methods are tested on are no embedders")

    def examples(self, expert: int) -> tuple[Example, ...]:
        """Return a few examples, the same for all experts."""
        return living.EXAMPLES

    def stat(self, name: str, expert: int) -> Mapping[str, Tensor]:
        """Return a made-up statistic by weight."""
        found = {slot.name: slot.stats[name][expert] for slot in self._slots}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    def batches(self, expert: int) -> Iterator[Mapping[str, Tensor]]:
        """Tokenise the examples."""
        return living.batches()


def weights(n: int, shape: Sequence[int] = (13, 29), *, seed: int = 0) -> list[Tensor]:
    """Draw numbers whose sums are exact in float32: multiples of 1/256, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-512, 513, tuple(shape), generator=generator) / 256 for _ in range(n)]


def near(base: Tensor, n: int, *, seed: int = 1) -> list[Tensor]:
    """Draw fine-tunes: small steps from a base."""
    return [base + step / 16 for step in weights(n, base.shape, seed=seed)]


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether tensors by name are the same, in dtype and in every bit."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )
