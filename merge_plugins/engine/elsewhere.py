"""Do on a device what may not fit there or not run there: smaller, or else on the CPU."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from merge_plugins.errors import first_line
from merge_plugins.parallel import Place

T = TypeVar("T")
logger = logging.getLogger(__name__)

SMALLEST_BLOCK = 1 << 18
"""Elements per block; where even these find no memory, the CPU merges."""


def there_or_here(run: Callable[[Place], T], place: Place, here: Place, method: str) -> T:
    """Run something on a device, with ever smaller blocks where memory is short, or on the CPU.

    It runs on the CPU where even small blocks do not fit, and where ``method`` does what the device
    cannot; the log says so once for each reason.
    """
    for attempt in _ever_smaller(place):
        try:
            return run(attempt)
        except torch.OutOfMemoryError as exc:
            reason = first_line(exc)  # not the error, which keeps what was there alive
        except (RuntimeError, TypeError) as exc:  # whatever a kernel cannot do on this device
            reason = first_line(exc)
            break
    result = run(here)
    _say_fallback(method, str(place.device), reason)
    return result


def _ever_smaller(place: Place) -> Iterator[Place]:
    """Try a place with ever smaller blocks."""
    yield place
    while place.block > SMALLEST_BLOCK:
        place = place.smaller()
        yield place


@functools.cache
def _say_fallback(method: str, device: str, reason: str) -> None:
    """Log, once for each reason, that weights are merged on the CPU."""
    logger.warning("%s merges on the CPU what goes to %s: %s", method, device, reason)


def brought_back(kernel: T) -> T:
    """Copy the tensors of a kernel to the CPU, from where it merges on any device.

    Raises `TypeError` for a kernel that is no dataclass: what is in it cannot be known.
    """
    if kernel is not None and not dataclasses.is_dataclass(kernel):
        raise TypeError(f"{type(kernel).__name__}, which it prepared, is no dataclass")
    result: T = _on_cpu(kernel)
    return result


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(each) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_on_cpu, value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return dataclasses.replace(value, **{name: _on_cpu(each) for name, each in fields.items()})
