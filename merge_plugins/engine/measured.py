"""Remember what methods measured of weights, from one merge to the next."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from merge_plugins.parallel import CPU, Place
from merge_plugins.planning import Plan, PlannedTensor
from merge_plugins.weights import opened_files, signature

Measured: TypeAlias = Mapping[str, Tensor]
MOST = 16
"""Measurements remembered of one weight: a few numbers for each expert, with other parameters."""
_remembering = threading.Lock()


def remembered(planned: PlannedTensor, plan: Plan, place: Place, kernel: Any) -> Measured | None:
    """Return what an equal kernel measured of the same weights at such a place, if it is known."""
    key = _key(planned, plan, place, kernel)
    if key is None:
        return None
    with _remembering:
        known = _memory(planned)
        found: Measured | None = known.pop(key, None)
        if found is not None:
            known[key] = found  # the last to be forgotten
        return found


def remember(
    planned: PlannedTensor, plan: Plan, place: Place, kernel: Any, measured: Measured
) -> None:
    """Keep what a kernel measured, as long as the file of the first weight is open."""
    key = _key(planned, plan, place, kernel)
    if key is None:
        return
    with _remembering:
        known = _memory(planned)
        known[key] = measured
        while len(known) > MOST:
            del known[next(iter(known))]


def _memory(planned: PlannedTensor) -> dict[Hashable, Measured]:
    file = opened_files(planned.stored)[0]  # there is one, as there is a key
    known: dict[Hashable, Measured] = file.memory.setdefault(planned.name, {})
    return known


def _key(planned: PlannedTensor, plan: Plan, place: Place, kernel: Any) -> Hashable:
    """Return all that a measurement depends on; None where that is not known."""
    fields = getattr(kernel, "measured_by", None)
    if fields is None or plan.method.statistics(kernel):
        return None
    weights = tuple(map(signature, planned.stored))
    if None in weights:
        return None
    return (
        (type(kernel), *(getattr(kernel, name) for name in fields)),
        weights,
        (planned.base is None, planned.dtype, planned.input_dim),
        (plan.recipe.dtype, plan.recipe.seed),
        CPU if place.by_threads else place,  # where a reader reads the whole weight
    )
