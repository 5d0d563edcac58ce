"""Find the one device that a loader puts a model on, if it is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from merge_plugins.parallel import accelerator


def only_device(device_map: Any) -> torch.device | None:
    """Return the only device that a device map of transformers names; None if there are several.

    "auto" and its like name the accelerator where there is just one.
    """
    places = {*map(str, device_map.values())} if isinstance(device_map, Mapping) else {device_map}
    (place, *others) = places
    if others or place is None:
        return None
    gpu = accelerator()
    if str(place).isdecimal():
        return gpu and torch.device(gpu.type, int(place))
    try:
        return torch.device(place)
    except RuntimeError:  # a way to share a model out, or "disk"
        shares_out = gpu is not None and place != "disk" and torch.accelerator.device_count() == 1
        return gpu if shares_out else None
