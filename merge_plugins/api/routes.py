"""The contract of a method whose weights depend on the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from merge_plugins.api.low_rank import Branch
from merge_plugins.api.slot import Slot


class Requests(Protocol):
    """Requests to be routed; features are computed when they are first asked for."""

    def __len__(self) -> int:
        """Count the requests."""

    @property
    def features(self) -> Tensor:
        """Mean over the prompt of the shared expert's last hidden state: float32 [len, width]."""

    @property
    def task(self) -> str:
        """The harness's name of the task that all requests belong to, or an error."""


Router: TypeAlias = Callable[[Requests], Tensor]
"""From requests to the weight of each expert's branches: float32 [requests, N]."""


class Gate(Protocol):
    """A way to weigh requests, before the examples have been seen. Compared by value."""

    @property
    def by_task(self) -> bool:
        """Whether the router goes by the name of a task, not by the prompts."""

    def learn(self, features: Callable[[int], Tensor], seed: int, /) -> Router:
        """Learn the router; ``features(expert)``: of the expert's examples, float32 [n, width]."""


@runtime_checkable
class Routes(Protocol):
    """A method whose weights depend on the input: the kernel gives the shared part."""

    @property
    def gate(self) -> Gate:
        """The gate of the whole model."""

    def branch_numel(self, shape: Sequence[int], /) -> int:
        """Count the elements of each branch of a weight of that shape; 0: it is only shared."""

    def branches(self, slot: Slot, shared: Tensor, /) -> Sequence[Branch]:
        """Compute a branch per expert, float32, all of one kind; ``shared``: the merged weight."""
