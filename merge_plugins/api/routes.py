"""The contract of a method whose weights depend on the input; part of `merge_plugins.api`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from merge_plugins.api.low_rank import Branch
from merge_plugins.api.slot import Slot


class Requests(Protocol):
    """What a router may look at; nothing is computed before it is asked for."""

    def __len__(self) -> int:
        """How many requests there are."""

    @property
    def features(self) -> Tensor:
        """Mean over the prompt of the shared expert's last hidden state: float32 [len, width]."""

    @property
    def task(self) -> str:
        """The harness's name of the task that all of these belong to, or an error."""


Router: TypeAlias = Callable[[Requests], Tensor]
"""From requests to the weight of each expert's branches: float32 [requests, N]."""


class Gate(Protocol):
    """How requests will be weighed, once the examples have been seen. Compared by value."""

    @property
    def by_task(self) -> bool:
        """Whether the router goes by the name of a task, not by what prompts say."""

    def learn(self, features: Callable[[int], Tensor], seed: int, /) -> Router:
        """The router; ``features(expert)`` are those of its examples: float32 [n, width]."""


@runtime_checkable
class Routes(Protocol):
    """A method whose weights depend on the input: the kernel gives the shared part."""

    @property
    def gate(self) -> Gate:
        """How requests are weighed: one for the whole model."""

    def branch_numel(self, shape: Sequence[int], /) -> int:
        """Number of elements each branch of a weight of that shape has; 0: it is only shared."""

    def branches(self, slot: Slot, shared: Tensor, /) -> Sequence[Branch]:
        """One branch per expert, float32 and all of one kind; ``shared``: the merged weight."""
