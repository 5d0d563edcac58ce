"""Keep weights in memory from one merge to the next, on the CPU or on the device of the merges."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from merge_plugins.errors import MergeError, RecipeError, first_line
from merge_plugins.memory import return_memory
from merge_plugins.parallel import accelerator

logger = logging.getLogger(__name__)


class Resident:
    """Weights that stay in the memory of one device, each from when it is first read."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.n_blocks = device, 0
        self._sizes: dict[Hashable, int] = {}
        self._kept: dict[Hashable, Future[Tensor]] = {}
        self._lock = threading.Lock()

    def expect(self, sizes: Mapping[Hashable, int]) -> None:
        """Plan to keep the weights of a merge, in bytes by signature, before any of them is read.

        What was kept for earlier merges stays as long as there is room. Raises `MergeError` if
        there is too little for this merge alone.
        """
        with self._lock:
            before, self._sizes = self._sizes, {**self._sizes, **sizes}
            missing, free = self._missing(), free_bytes(self.device)
            if free is not None and missing > free:
                self._sizes = dict(sizes)
                self._kept = {key: kept for key, kept in self._kept.items() if key in sizes}
                return_memory()
                missing, free = self._missing(), free_bytes(self.device)
            if free is not None and missing > free:
                self._sizes = {key: size for key, size in before.items() if key in self._kept}
                raise MergeError(
                    f"shared_sources(resident={str(self.device)!r}) would keep {_size(missing)} of "
                    f"sources in memory, and {self.device} has {_size(free)} free; "
                    f"{self._otherwise()}"
                )
            if not sizes.keys() <= before.keys():
                has = "" if free is None else f", which has {_size(free)} free"
                logger.info("keeps %s of sources on %s%s", _size(missing), self.device, has)

    def _missing(self) -> int:
        return sum(size for key, size in self._sizes.items() if key not in self._kept)

    def _otherwise(self) -> str:
        if self.device.type == "cpu":
            return "merge fewer or smaller models, or leave resident= out: then files are read"
        return "merge fewer or smaller models, or keep them in RAM: resident='cpu'"

    def find(self, key: Hashable) -> Tensor | None:
        """Return a weight that has been read."""
        kept = self._kept.get(key)
        is_read = kept is not None and kept.done() and kept.exception() is None
        return kept.result() if kept is not None and is_read else None

    def expects(self, key: Hashable) -> bool:
        """Whether a weight is to be kept."""
        return key in self._sizes

    def keep(self, key: Hashable, read: Callable[[], Tensor]) -> Tensor | None:
        """Return a weight, read now if it has not been yet; None for one that is not expected."""
        with self._lock:
            if key not in self._sizes:
                return None
            kept = self._kept.get(key)
            first = kept is None
            if kept is None:
                kept = self._kept[key] = Future()
        if first:
            try:
                kept.set_result(read())
            except BaseException as exc:
                with self._lock:
                    self._kept.pop(key, None)
                kept.set_exception(exc)
                raise
        return kept.result()

    def drop(self) -> None:
        """Let go of all weights."""
        with self._lock:
            self._sizes, self._kept = {}, {}
        return_memory()


_all: dict[torch.device, Resident] = {}
_entering = threading.Lock()


def resident_on(device: torch.device) -> Resident | None:
    """Return what keeps weights on a device, inside of a block that asked for it."""
    return _all.get(device)


def residents() -> list[Resident]:
    """Return all that keep weights now."""
    return list(_all.values())


@contextmanager
def keeping(device: torch.device) -> Iterator[None]:
    """Keep weights on a device until the end of the block, or of one around it that does."""
    with _entering:
        found = _all.setdefault(device, Resident(device))
        found.n_blocks += 1
    try:
        yield
    finally:
        with _entering:
            found.n_blocks -= 1
            if not found.n_blocks:
                del _all[device]
                found.drop()


def device_named(device: str | torch.device) -> torch.device:
    """Return a device of this machine, with its number, or raise `RecipeError`."""
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as exc:  # AssertionError: built without it
        found, why = None, first_line(exc)
    else:
        why = "it has no memory"
    if found is None or found.type == "meta":
        known = " or ".join(repr(str(each)) for each in ("cpu", accelerator()) if each)
        raise RecipeError(f"resident={str(device)!r} is no device here ({why}); name {known}")
    return found


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory of a device can be had now; None where torch does not say."""
    if device.type == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    module: Any = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + unused)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
