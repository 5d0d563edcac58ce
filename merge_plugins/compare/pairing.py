"""Pair the weights of models: any layout, adapters, deltas, as merges read them.

A merge refuses models that do not fit together; a comparison leaves out the weights that do not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merge_plugins.compare.models import Models
from merge_plugins.engine import open_source
from merge_plugins.errors import MergeWarning, MismatchError
from merge_plugins.planning import Plan, PlannedTensor, in_one_layout
from merge_plugins.planning.names import DERIVED
from merge_plugins.planning.plan import MERGEABLE
from merge_plugins.plugins import registry
from merge_plugins.recipe import Reference
from merge_plugins.sources import Source, tied_to
from merge_plugins.weights import SourceTensor


@dataclass(frozen=True)
class Pairing:
    """The weights that all models have, and why others are left out."""

    plan: Plan
    left_out: Mapping[str, str]
    """The reason, by name."""


def paired(models: Models) -> Pairing:
    """Open the models and pair their weights by name, those of the first; reads headers only."""
    opened: dict[Reference, Source] = {}
    sources = {ref: open_source(ref, models.base, opened) for ref in models.all}
    names = models.names
    left_out: dict[str, str] = {}
    read = _in_one_layout(sources, models.all[0], left_out)
    tensors: dict[str, PlannedTensor] = {}
    for name in dict.fromkeys(name for source in read.values() for name in source):
        if name.endswith(DERIVED):
            continue
        found = [_weight(name, [*read.values()], source) for source in read.values()]
        reason = _reason(found, names) or ("excluded" if _is_excluded(name, models) else "")
        if reason:
            left_out[name] = reason
            continue
        first, *others = (each for each in found if each is not None)
        about = (name, first.shape, first.dtype, first, tuple(others))
        tensors[name] = PlannedTensor(*about, kernel=None, models=models.all, parameters={})
    if not tensors:
        why = "; ".join(f"{name}: {reason}" for name, reason in [*left_out.items()][:3])
        raise MismatchError(f"{', '.join(names)} have no weight in common to compare. {why}")
    config = sources[models.all[0]].config
    plan = Plan(models.recipe, registry().get(models.recipe.merge_method), read, tensors, config)
    return Pairing(plan, left_out)


def _in_one_layout(
    sources: Mapping[Reference, Source], donor: Reference, left_out: dict[str, str]
) -> Mapping[Reference, Source]:
    """Read all models in the first one's layout; by their own names where that is impossible."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)  # of weights left out: they are all listed
        try:
            return in_one_layout(sources, donor)[0]
        except MismatchError as exc:
            left_out["layouts"] = str(exc)
            return sources


def _weight(name: str, sources: Sequence[Source], own: Source) -> SourceTensor | None:
    """Find a model's weight; a tied head is the embedding."""
    if name in own:
        return own[name]
    shape = next(source[name].shape for source in sources if name in source)
    return tied_to(name, shape, own)


def _reason(found: Sequence[SourceTensor | None], names: Sequence[str]) -> str:
    """Say why a weight cannot be compared; "" if it can."""
    there = {name: each for name, each in zip(names, found, strict=True) if each is not None}
    if len(there) < len(found):
        return f"only in {', '.join(there)}"
    if len({tuple(each.shape) for each in there.values()}) > 1:
        return ", ".join(f"{list(each.shape)} in {name}" for name, each in there.items())
    odd = {str(each.dtype).removeprefix("torch.") for each in there.values()
           if each.dtype not in MERGEABLE}  # fmt: skip
    if odd:
        return f"{', '.join(sorted(odd))}, no floating-point weight of 16 bits or more"
    return "" if math.prod(next(iter(there.values())).shape) else "empty"


def _is_excluded(name: str, models: Models) -> bool:
    return any(part in name for part in models.exclude)
