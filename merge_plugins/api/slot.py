"""One named weight of every model: a `Weight` is not read yet, a `Slot` is tensors in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from merge_plugins.api.low_rank import LowRank
from merge_plugins.api.region import Region
from merge_plugins.errors import RecipeError
from merge_plugins.memory import new_memory
from merge_plugins.parallel import CPU, Place
from merge_plugins.ranks import Ranks

T = TypeVar("T")
RUN = 64
"""Neighbours sampled together: one page read serves them all."""


@dataclass(frozen=True)
class Slot:
    """One named weight of every model, or a region of it, in memory: what a kernel is called with.

    All tensors share one shape; dtype as stored, or the recipe's ``dtype``. A kernel whose
    granularity is ELEMENT may be handed any region of the weight; `index` gives the positions of
    its elements, so that counter-based randomness gives the same bits for any region.
    """

    name: str
    """Checkpoint name, e.g. ``model.layers.3.mlp.up_proj.weight``."""
    maybe_base: Tensor | None
    """The base model's weight; None when the recipe names no base."""
    experts: tuple[Tensor, ...]
    """N weights, in the order the user wrote the models."""
    stats: Mapping[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    """Calibration statistics, by name, one per expert; None: the model has none of this weight. A
    statistic of the weight's shape is cut with it into regions."""
    factors: tuple[LowRank | None, ...] = ()
    """Update of each expert by an adapter, as stored: of the whole weight, whatever the region."""
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    """Result of the method's ``measure`` for the whole weight."""
    seed: int = 0
    """The recipe's seed."""
    input_dim: int | None = -1
    """The dimension that runs over the layer's inputs: the last of a linear layer (out, in), -2 of
    a GPT-2 Conv1D (in, out) or of experts stored (expert, in, out), 0 of an embedding (tokens, d)
    and of nothing else; None: the weight is no matrix (biases, convolutions). Known to methods
    registered ``layout=True`` and to those whose granularity is MATRIX."""
    region: Region | None = None
    """Part of the weight that this is, or was sampled from; None: all of it."""
    positions: Tensor | None = None
    """Flat positions in the whole weight, of a sample, whose elements fill no box: int64 [n]."""

    @property
    def box(self) -> Region:
        """The part of the weight that this slot lies in, also where that is all of it."""
        return self.region or Region.whole(self.shape)

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensors here, which may be a region of the weight."""
        return self.experts[0].shape

    @property
    def span(self) -> tuple[int, int]:
        """Flat range of the whole weight that this slot lies in, possibly with gaps."""
        return self.box.span or (0, math.prod(self.box.shape))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every input."""
        tensors = (*self.experts, *(() if self.maybe_base is None else (self.maybe_base,)))
        dtype: torch.dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
        return dtype

    @property
    def base(self) -> Tensor:
        """The base model's weight, or an error that shows how to name one."""
        if self.maybe_base is None:
            raise RecipeError(
                f"{self.name}: this method needs a base model; add base_model: <model>"
            )
        return self.maybe_base

    def index(self) -> Tensor:
        """Position of every element in the whole, flattened weight: int64, same shape."""
        index = self.box.index() if self.positions is None else self.positions
        return index.to(self.experts[0].device)

    def before(self, position: int) -> int:
        """Count the elements here that lie before a flat position in the whole weight.

        They are the first ones in memory.
        """
        if self.positions is None:
            return self.box.before(position)
        return int(torch.searchsorted(self.positions, position))

    def of_rows(self, values: Tensor) -> Tensor:
        """View one value per row of the whole weight, [*shape[:-1]], so that it meets this slot."""
        if self.positions is None or not self.box.shape:
            return self.box.of_rows(values)
        return values.reshape(-1)[self.positions // self.box.shape[-1]]

    def stacked(self) -> Tensor:
        """Stack the experts: float32 [N, *shape]."""
        return torch.stack([expert.float() for expert in self.experts])

    def deltas(self) -> Tensor:
        """Subtract the base from each expert, giving task vectors: float32 [N, *shape]."""
        base = self.base.float()
        deltas = torch.empty(
            len(self.experts), *base.shape, dtype=torch.float32, device=base.device
        )
        for delta, expert in zip(deltas, self.experts, strict=True):
            delta.copy_(expert).sub_(base)
        return deltas

    def generator(self, expert: int) -> torch.Generator:
        """Seed a random generator for one expert: the same draws in any order, shard or thread.

        For methods that take whole tensors. One whose granularity is ELEMENT draws from
        `merge_plugins.ops.random.keep_at_random`, which also agrees between regions.
        """
        return torch.Generator().manual_seed(int.from_bytes(self.stream(expert)[:7], "big"))

    def stream(self, expert: int) -> bytes:
        """Hash seed, weight and expert: 32 bytes that no other stream of random numbers has."""
        return hashlib.sha256(f"{self.seed}/{self.name}/{expert}".encode()).digest()

    def weight(self, place: Place | None = None) -> Weight:
        """Return this slot as a `Weight` whose parts are views of the tensors here.

        ``place``: how it is cut into blocks (default: as on the device of the tensors).
        """
        n_experts, has_base = len(self.experts), self.maybe_base is not None
        about = (self.name, self.box, self.dtype, n_experts, has_base, self.input_dim)
        place = place or Place.on(self.experts[0].device)
        return Weight(*about, _InMemory(self), place=place)


class Reader(Protocol):
    """Reads parts of one weight from every model, and forgets them again."""

    def read(self, region: Region, /) -> Slot:
        """Read a region."""

    def walk(self, regions: Iterable[Region], /) -> Iterator[Slot]:
        """Read regions one after another; each is released when the next is asked for."""

    def sample(self, pick: Callable[[Tensor], Tensor], positions: Tensor, /) -> Slot:
        """Read what ``pick`` takes of the whole weight: the elements at flat ``positions``."""

    def release(self, region: Region, /) -> None:
        """Hand the region's pages back to the system."""


@dataclass(frozen=True)
class Weight:
    """One named weight of every model, not read yet, or one matrix of a stack of them.

    What ``measure``, methods on matrices and `Sources` get. Read it in parts, each a `Slot`.
    """

    name: str
    """Checkpoint name, e.g. ``model.layers.3.mlp.up_proj.weight``."""
    region: Region
    """Part of the stored weight that this is: all of it, or one matrix of a stack."""
    dtype: torch.dtype
    """The dtype that holds every input: the models', or the recipe's ``dtype``."""
    n_experts: int
    """Number of experts, N."""
    has_base: bool
    """Whether slots of it have a base."""
    input_dim: int | None
    """See `Slot.input_dim`."""
    reader: Reader = field(repr=False)
    rounds_to: torch.dtype = torch.float32
    """Dtype that the engine rounds the merged weight to. Kernels return float32; one that merges a
    whole matrix may write this instead, row by row, rather than hold twice as much."""
    place: Place = CPU
    """Where its parts are read to, and how `map_blocks` walks them."""
    ranks: Ranks | None = None
    """Processes of which each looks at a part of it, in `sample` and in `map_blocks`."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight, or of the matrix."""
        return torch.Size(self.region.sizes)

    @property
    def device(self) -> torch.device:
        """Device that parts of it are read to."""
        return self.place.device

    @property
    def has_room(self) -> bool:
        """Whether there is memory to keep as much as its experts take until it is merged.

        Then ``measure`` may return the merge itself, or any tensor of the weight's shape, for the
        kernel to cut: it is dropped when the weight is merged.
        """
        return self.n_experts * self.region.numel * self.dtype.itemsize <= self.place.room

    def empty(self, dtype: torch.dtype) -> Tensor:
        """Allocate a tensor of this shape where the weight's parts are read to: [*shape]."""
        return new_memory(self.shape, dtype, self.device)

    def part(self, region: Region) -> Slot:
        """Read a region, in coordinates of the stored weight."""
        return self.reader.read(region)

    def sample(self, step: int) -> Slot:
        """Read about one element in ``step`` of a whole weight: runs of neighbours at even steps.

        The slot's tensors have one dimension; `Slot.index` gives their positions.
        """
        total = self.region.numel
        runs, run, stride = total // (step * RUN), RUN, step * RUN
        if step == 1 or runs == 0:
            runs, run, stride = -(-total // step), 1, step

        positions = (torch.arange(runs) * stride)[:, None] + torch.arange(run)

        def read(first: int, last: int) -> Slot:
            def pick(tensor: Tensor) -> Tensor:
                flat = tensor.reshape(-1)
                start = flat.storage_offset() + first * stride
                return flat.as_strided((last - first, run), (stride, 1), start).reshape(-1)

            return self.reader.sample(pick, positions[first:last].reshape(-1))

        ranks = self.ranks
        if ranks is None or runs < ranks.size:
            return read(0, runs)
        own = read(runs * ranks.rank // ranks.size, runs * (ranks.rank + 1) // ranks.size)
        bases = () if own.maybe_base is None else (own.maybe_base,)
        parts = ranks.together(
            lambda: (*bases, *own.experts), work=f"{self.name}: sample", device=self.device
        )
        whole = [torch.cat(each) for each in zip(*parts, strict=True)]
        base, experts = (whole[0] if bases else None), tuple(whole[len(bases) :])
        return dataclasses.replace(
            own, maybe_base=base, experts=experts, positions=positions.view(-1)
        )

    def walk(self, regions: Iterable[Region]) -> Iterator[Slot]:
        """Read regions one after another; on another device, one ahead of the caller."""
        return self.reader.walk(regions)

    def map_blocks(
        self, function: Callable[[Slot], T], regions: Sequence[Region] | None = None
    ) -> list[T]:
        """Apply a function to every block: results in order.

        Runs on every core, or on the device of the parts, and reads each source once, in bounded
        memory. ``regions``: walk these instead of all `blocks`, when the results are large. Use the
        results alone: those of some blocks may be computed by other `ranks`.
        """
        regions = self.blocks() if regions is None else regions
        if self.ranks is None:
            return self.place.through(self.walk, function, regions)
        first, total = self.region.start, self.region.numel
        owners = [self.ranks.owner(each.start - first, total) for each in regions]
        return self.ranks.map(
            lambda own: self.place.through(self.walk, function, own),
            regions,
            owners,
            work=f"{self.name}: blocks",
            device=self.device,
        )

    def blocks(self, *, whole_rows: bool = False) -> list[Region]:
        """List the regions that `map_blocks` walks, in order; see `Region.blocks`."""
        size = self.place.block_size(self.n_experts + self.has_base)
        return list(self.region.blocks(size, whole_rows=whole_rows))

    def through(self, change: Callable[[Slot], Slot]) -> Weight:
        """Return this weight with every part changed as it is read.

        For a method that wraps another one, such as a mask before a merge.
        """
        return dataclasses.replace(self, reader=_Changed(self.reader, change))


@dataclass(frozen=True)
class _InMemory:
    """Reads parts of a slot."""

    slot: Slot

    def read(self, region: Region) -> Slot:
        at = region.within(self.slot.box)
        return self._part(lambda tensor: tensor[at], region=region)

    def walk(self, regions: Iterable[Region]) -> Iterator[Slot]:
        return map(self.read, regions)

    def sample(self, pick: Callable[[Tensor], Tensor], positions: Tensor) -> Slot:
        return self._part(pick, positions=positions, region=self.slot.box)

    def release(self, region: Region) -> None:
        """Do nothing: nothing was read."""

    def _part(self, cut: Callable[[Tensor], Tensor], **place: object) -> Slot:
        slot = self.slot
        base = None if slot.maybe_base is None else cut(slot.maybe_base)

        def statistic(found: Tensor | None) -> Tensor | None:
            return found if found is None or found.shape != slot.shape else cut(found)

        stats = {name: tuple(map(statistic, each)) for name, each in slot.stats.items()}
        experts = tuple(map(cut, slot.experts))
        return dataclasses.replace(slot, maybe_base=base, experts=experts, stats=stats, **place)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Changed:
    """Reads what another reader does, changed."""

    reader: Reader
    change: Callable[[Slot], Slot]

    def read(self, region: Region) -> Slot:
        return self.change(self.reader.read(region))

    def walk(self, regions: Iterable[Region]) -> Iterator[Slot]:
        return map(self.change, self.reader.walk(regions))

    def sample(self, pick: Callable[[Tensor], Tensor], positions: Tensor) -> Slot:
        return self.change(self.reader.sample(pick, positions))

    def release(self, region: Region) -> None:
        self.reader.release(region)


class Shaped(Protocol):
    """A weight of which the shape is known: a `Slot`, a `Weight`, or a plan's tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape."""

    @property
    def input_dim(self) -> int | None:
        """See `Slot.input_dim`."""


def holds_matrices(weight: Shaped) -> bool:
    """Whether a weight is of linear layers, one or a stack: no embedding, convolution or vector."""
    return weight.input_dim in (-1, -2) and len(weight.shape) > 1 and math.prod(weight.shape) > 0
