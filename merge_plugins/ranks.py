"""Share work among the ranks of an engine: each does a part, and all get every part's result.

The ranks ask for the same work in the same order. Sharing changes no result, so where it fails it
ends on all ranks at the same step, and each goes on alone: none waits for another that has stopped.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from merge_plugins.errors import first_line
from merge_plugins.memory import elements, of_elements

T = TypeVar("T")
R = TypeVar("R")
CPU = torch.device("cpu")
DONE = "done"


class UnsharedError(Exception):
    """Raised on every rank at the same step: this work is not shared, do it alone."""


class _Message(NamedTuple):
    """What one rank tells all others at one step."""

    work: str
    """What it does; the same on all ranks as long as they are in step."""
    result: Any = None
    failure: str = ""
    leaves: bool = False
    """Whether it will take no further step."""


@dataclass
class Ranks:
    """This process among those that share work."""

    rank: int
    size: int
    gather: Callable[[bytes], Sequence[bytes]]
    """Send a message to all ranks; return every rank's, in order, once all have sent one."""
    open: bool = True
    """Whether all ranks still share."""

    def owner(self, position: int, total: int) -> int:
        """Return the rank whose equal share of ``[0, total)`` holds a position."""
        return position * self.size // total

    def map(
        self,
        compute: Callable[[Sequence[T]], Sequence[R]],
        items: Sequence[T],
        owners: Sequence[int],
        *,
        work: str,
        device: torch.device = CPU,
    ) -> list[R]:
        """Compute ``compute(items)``, one result for each item, each on the rank that owns it.

        ``device``: where other ranks' tensors go to, if they were not on the CPU there.
        """
        own = [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]

        def results() -> Sequence[R]:
            made = compute(own)
            if any(result is None for result in made):
                raise TypeError("a function that returns None works by its effects, on this rank")
            return made

        parts = self.together(results, work=f"{work}, {len(items)}", device=device)
        found = [iter(part) for part in parts]
        return [next(found[owner]) for owner in owners]

    def together(
        self, compute: Callable[[], R], *, work: str, device: torch.device = CPU
    ) -> list[R]:
        """Take one step: return what every rank computed, in order of ranks.

        Raises `UnsharedError`, on all ranks, if one failed, has left or does other ``work``.
        """
        if not self.open:
            raise UnsharedError
        own, packed = self._attempt(compute, work)
        try:
            others = [
                own if rank == self.rank else unpacked(sent, device)
                for rank, sent in enumerate(self.gather(packed))
            ]
        except Exception as exc:  # a rank died, or the network between them
            self.open = False
            raise UnsharedError from exc
        if any(message.leaves for message in others):
            self.open = False
            raise UnsharedError
        if failures := [message.failure for message in others if message.failure]:
            raise UnsharedError(failures[0])
        if any(message.work != work for message in others):
            self.open = False
            raise UnsharedError(f"ranks out of step: {[message.work for message in others]}")
        return [message.result for message in others]

    @staticmethod
    def _attempt(compute: Callable[[], Any], work: str) -> tuple[_Message, bytes]:
        try:
            message = _Message(work, compute())
            return message, packed(message)
        except Exception as exc:  # told to all, and met again by who works alone
            message = _Message(work, failure=first_line(exc))
            return message, packed(message)

    def all_or_none(self, run: Callable[[], R]) -> R | None:
        """Run something that shares work; return None, on all ranks, if it failed on any."""
        with suppress(UnsharedError):
            try:
                result = run()
            except UnsharedError:
                raise
            except Exception as exc:  # the same error comes back to who then works alone
                self.together(functools.partial(_fail, exc), work=DONE)
            else:
                self.together(lambda: None, work=DONE)
                return result
        return None

    def leave(self) -> None:
        """Share no more, and tell the others; every rank calls it in the end."""
        if self.open:
            self.open = False
            with suppress(Exception):  # the others may have died
                self.gather(packed(_Message("", leaves=True)))


def _fail(exc: Exception) -> None:
    raise exc


class _Pickler(pickle.Pickler):
    """Pickle tensors by their elements alone, and say whether they were on the CPU."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        return obj.device.type == "cpu", obj.dtype, tuple(obj.shape), elements(obj.to(CPU))


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, device: torch.device) -> None:
        super().__init__(io.BytesIO(data))
        self._device = device

    def persistent_load(self, pid: Any) -> Tensor:
        on_cpu, dtype, shape, raw = pid
        return of_elements(raw, dtype, shape).to(CPU if on_cpu else self._device)


def packed(value: Any) -> bytes:
    """Pickle a value; of tensors, which may be views, only their own elements."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def unpacked(data: bytes, device: torch.device = CPU) -> Any:
    """Unpickle what another rank packed; what was on a device there goes to this one."""
    return _Unpickler(data, device).load()
