"""Which device a merge goes to is known before the model is built, if it is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from merge_plugins.outputs.device_map import only_device

CPU = torch.device("cpu")
CASES: list[tuple[Any, torch.device | None]] = [
    (None, None),
    ("cpu", CPU),
    (CPU, CPU),
    ({"": "cpu"}, CPU),
    ({"a": "cpu", "b": CPU}, CPU),
    ({"a": "cpu", "b": "disk"}, None),
    ({"": "disk"}, None),
    ("cuda:1", torch.device("cuda:1")),
    ({"": torch.device("cuda", 1), "lm_head": "cuda:1"}, torch.device("cuda:1")),
    ({"a": 0, "b": 1}, None),
]


@pytest.mark.parametrize(("device_map", "expected"), CASES, ids=str)
def test_one_device_or_none(device_map: Any, expected: torch.device | None) -> None:
    assert only_device(device_map) == expected


@pytest.mark.parametrize("device_map", [0, "0", {"": 0}, "auto", "balanced"], ids=str)
def test_numbers_and_ways_to_share_out_mean_an_accelerator(device_map: Any) -> None:
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = only_device(device_map)
    if gpu is None:
        assert found is None
    elif str(device_map) in ("auto", "balanced"):
        assert found == (gpu if torch.accelerator.device_count() == 1 else None)
    else:
        assert found == torch.device(gpu.type, 0)
