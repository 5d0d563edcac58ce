"""Check options of harnesses that fail only once a merge is made, or in another's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from merge_plugins.errors import CheckpointError, MergeError, did_you_mean_path, first_line
from merge_plugins.weights.files import adapter_files
from merge_plugins.weights.hub import resolve


def check_device(given: Any) -> None:
    """Raise `MergeError` for a device that torch does not find on this machine.

    Words that are no device of torch's are left to the harness.
    """
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        return
    count = getattr(getattr(torch, device.type, None), "device_count", None)
    if count is None:
        return
    n = count()
    if not n:
        raise MergeError(
            f"device {given}: torch {torch.__version__} finds none on this machine. "
            "Write --device cpu (among arguments: device=cpu)"
        )
    if (device.index or 0) >= n:
        raise MergeError(f"device {given}: this machine has {n}, {device.type}:0 to :{n - 1}")


def check_adapter(given: Any, key: str = "peft") -> None:
    """Raise `MergeError` for an adapter that is not there; one on the hub is downloaded."""
    with naming(key, given):
        adapter_files(resolve(str(given)))


def check_file(given: Any, key: str) -> None:
    """Raise `MergeError` for a file that is not there."""
    file = Path(given).expanduser()
    if not file.is_file():
        hint = did_you_mean_path(file) or ". Check the path."
        raise MergeError(f"{key}={given}: no such file{hint}")


@contextmanager
def naming(key: str, given: Any) -> Iterator[None]:
    """Begin the message of an error of the hub's or of a folder with the option that names it."""
    try:
        yield
    except CheckpointError as exc:
        raise type(exc)(f"{key}={given}: {exc}") from exc
    except OSError as exc:
        hint = did_you_mean_path(Path(given).expanduser())
        why = f"there is none{hint}" if hint else first_line(exc)
        raise CheckpointError(f"{key}={given}: {why}") from exc
