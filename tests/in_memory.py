"""Merge one weight in memory, as the engine would merge it from disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from merge_plugins.api import MATRIX, Measures, Slot, holds_matrices


def measured(kernel: Any, slot: Slot) -> Mapping[str, Tensor]:
    """Measure a whole weight."""
    return kernel.measure(slot.weight()) if isinstance(kernel, Measures) else {}


def merged(kernel: Any, slot: Slot) -> Tensor:
    """Measure and merge a whole weight."""
    slot = dataclasses.replace(slot, measured=measured(kernel, slot))
    by_matrix = getattr(kernel, "granularity", None) is MATRIX and holds_matrices(slot)
    result: Tensor = kernel.merge_matrix(slot.weight()) if by_matrix else kernel(slot)
    return result
