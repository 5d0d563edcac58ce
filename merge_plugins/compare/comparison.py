"""Compare models weight by weight, and keep the sums of each layer and module type."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from tqdm.auto import tqdm

from merge_plugins.api import Region, Weight
from merge_plugins.compare import spectrum
from merge_plugins.compare.differences import Tokens, configs, tokenizers
from merge_plugins.compare.models import Models
from merge_plugins.compare.numbers import Numbers
from merge_plugins.compare.pairing import Pairing, paired
from merge_plugins.compare.places import Spot, spots
from merge_plugins.compare.sums import Kind, Sums, summed, total
from merge_plugins.engine import Merge
from merge_plugins.engine.meter import Meter, Work
from merge_plugins.engine.meter import total as total_work
from merge_plugins.errors import MismatchError
from merge_plugins.notice import tell
from merge_plugins.planning import PlannedTensor
from merge_plugins.planning.plan import readable
from merge_plugins.weights import held
from merge_plugins.weights.damage import refuse_damage

DIRECTIONS = 16
"""First singular directions whose energy is measured: the rank of most adapters, or more."""


@dataclass(frozen=True)
class Comparison:
    """What some models have in common, and where they differ."""

    models: Models
    kind: Kind
    sums: Mapping[Spot, Sums]
    """By layer and module type, in the order of the first model's weights."""
    n_weights: int
    n_elements: int
    left_out: Mapping[str, str]
    """Weights that were not compared, and why."""
    configs: Mapping[str, list[Any]]
    """Keys of config.json that differ: the value in each model, None where there is none."""
    tokenizers: list[Tokens]
    """The tokenizer of each model, against the first one's."""
    directions: int

    @property
    def names(self) -> list[str]:
        """Names of all models, the base first."""
        return self.models.names

    @cached_property
    def whole(self) -> Numbers:
        """Numbers of all weights together."""
        return Numbers(total([*self.sums.values()]), self.kind)

    @cached_property
    def spots(self) -> dict[Spot, Numbers]:
        """Numbers of each layer and module type."""
        return {spot: Numbers(sums, self.kind) for spot, sums in self.sums.items()}

    @cached_property
    def modules(self) -> dict[str, Numbers]:
        """Numbers of each module type, over all layers."""
        return self._along("module")

    @cached_property
    def layers(self) -> dict[int, Numbers]:
        """Numbers of each layer, over its modules; without the weights outside any layer."""
        found = self._along("layer")
        return {layer: found[layer] for layer in sorted(found.keys() - {None})}

    def typical(self, measure: Callable[[Numbers], float]) -> float:
        """Median of a measure over layers and module types; NaN if it is nowhere defined.

        Outside the layers, embeddings change most and norms least: one long vector of all weights
        is often that of the embeddings. Those count only where there are no layers.
        """
        inside = [self.spots[spot] for spot in self.spots if spot.layer is not None]
        found = [measure(numbers) for numbers in inside or self.spots.values()]
        known = [value for value in found if not math.isnan(value)]
        return median(known) if known else math.nan

    def _along(self, key: str) -> dict[Any, Numbers]:
        groups: dict[Any, list[Sums]] = {}
        for spot, sums in self.sums.items():
            groups.setdefault(getattr(spot, key), []).append(sums)
        return {name: Numbers(total(group), self.kind) for name, group in groups.items()}


def compare(models: Models, directions: int = DIRECTIONS) -> Comparison:
    """Compare models in memory of a few blocks; reads each weight while its pages are cached.

    ``directions``: how many first singular directions to measure, 0 to leave them out, which is
    most of the time. Raises `MergeError` for models that cannot be read or compared, before the
    first weight is read.
    """
    pairing = paired(models)
    plan, kind = pairing.plan, Kind(len(models.all), models.base is not None)
    sizes = {name: math.prod(t.shape) for name, t in plan.tensors.items()}
    found_configs = configs({ref: plan.checkpoints[ref].config for ref in models.all})
    found_tokenizers = tokenizers(models.all)
    tell(f"compare: {cost(pairing, kind, directions)}.")
    sums: dict[Spot, Sums] = {}
    at, merge = spots(plan.tensors), Merge(plan)
    works = {name: _work(t.shape, directions) for name, t in plan.tensors.items()}
    meter = Meter(total_work(works.values()), "all is compared")
    with tqdm(total=sum(sizes.values()), desc="Comparing", unit=" values", unit_scale=True,
              delay=2) as progress:  # fmt: skip
        for name, planned in plan.tensors.items():
            began = time.monotonic()
            with held(planned.stored):
                weight = merge.reader(planned).weight(Region.whole(planned.shape))
                found = _summed(weight, planned, kind, directions)
            spot = at[name]
            sums[spot] = sums[spot] + found if spot in sums else found
            meter.note(works[name], began)
            progress.update(sizes[name])
    plan.refuse_changes()
    return Comparison(
        models,
        kind,
        sums,
        len(plan.tensors),
        sum(sizes.values()),
        pairing.left_out,
        found_configs,
        found_tokenizers,
        directions,
    )


def cost(pairing: Pairing, kind: Kind, directions: int) -> str:
    """Write in a line what a comparison reads and computes."""
    plan = pairing.plan
    shapes = [planned.shape for planned in plan.tensors.values()]
    flops = len(kind.changes) * sum(spectrum.cost(shape, directions) for shape in shapes)
    work = f"; {flops / 1e12:.3g} TFLOP for {directions} directions" if flops > 1e11 else ""
    return (
        f"{kind.n_models} models, {len(shapes)} weights of each: {readable(plan.bytes_read)} "
        f"to read{work}"
    )


def _work(shape: Sequence[int], directions: int) -> Work:
    """Return what it takes to compare a weight: most of it are directions, where they are."""
    flops = spectrum.cost(shape, directions)
    return {"directions": flops} if flops else {"values": math.prod(shape)}


def _summed(weight: Weight, planned: PlannedTensor, kind: Kind, directions: int) -> Sums:
    found = summed(weight, kind, directions)
    if found is None:
        for stored in planned.stored:
            refuse_damage(stored)
        raise MismatchError(f"{planned.name}: differences of its values are beyond float32")
    return found
