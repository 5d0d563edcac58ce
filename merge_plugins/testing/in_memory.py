"""Merge one weight in memory, as the engine would merge it from disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from merge_plugins.api import MATRIX, Measures, Slot, granularity_of, holds_matrices
from merge_plugins.parallel import Place


def measured(kernel: Any, slot: Slot, place: Place | None = None) -> Mapping[str, Tensor]:
    """Measure a whole weight; ``place``: into which blocks it is cut for that."""
    return kernel.measure(slot.weight(place)) if isinstance(kernel, Measures) else {}


def merged(kernel: Any, slot: Slot, place: Place | None = None) -> Tensor:
    """Measure and merge a whole weight."""
    slot = dataclasses.replace(slot, measured=measured(kernel, slot, place))
    by_matrix = granularity_of(kernel) is MATRIX and holds_matrices(slot)
    result: Tensor = kernel.merge_matrix(slot.weight(place)) if by_matrix else kernel(slot)
    return result
