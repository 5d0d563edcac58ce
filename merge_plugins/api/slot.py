"""One named weight of every model: unread as a `Weight`, in memory as a `Slot`."""

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

from merge_plugins.api.low_rank import LowRank as LowRank
from merge_plugins.api.region import Region
from merge_plugins.errors import RecipeError
from merge_plugins.parallel import block_size, parallel

T = TypeVar("T")


class Reader(Protocol):
    """Reads regions of one weight from every model, and forgets them again."""

    def read(self, region: Region, /) -> Slot:
        """The slot of that region, in the recipe's dtype."""

    def convert(self, stored: Tensor, /) -> Tensor:
        """Part of a stored weight, in the recipe's dtype."""

    def release(self, region: Region, /) -> None:
        """Hand the region's pages back to the system."""


@dataclass(frozen=True)
class Slot:
    """One named weight as every model sees it. All tensors share one shape; dtype as stored.

    An elementwise kernel may be handed any region of the weight; ``index()`` tells where its
    elements are, so that counter-based randomness gives the same bits for any region. With a
    ``reader`` nothing is read yet: look at the weight through `part`, `walk` or `map_blocks`.
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
    """What an adapter added to each expert, as stored: of the whole weight, whatever the region."""
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method's ``measure`` said of the whole weight."""
    seed: int = 0
    """The recipe's seed."""
    input_dim: int | None = -1
    """The dimension that runs over the layer's inputs: the last of a linear layer (out, in), -2 of
    a GPT-2 Conv1D (in, out) or of experts stored (expert, in, out), 0 of an embedding (tokens, d)
    and of nothing else; None: the weight is no matrix (biases, convolutions). Known to methods
    registered ``layout=True`` or ``matrices=True``."""
    region: Region | None = None
    """Which part of the weight this is; None: all of it."""
    reader: Reader | None = field(default=None, repr=False)
    """How the runner reads regions of a weight on disk; None: cut them from the tensors here."""
    rounds_to: torch.dtype = torch.float32
    """What the runner rounds a kernel's result to. Kernels return float32; one that is handed all
    of a matrix may write this instead, row by row, rather than hold twice as much."""
    through: Callable[[Slot], Slot] | None = field(default=None, repr=False)
    """What a method that wraps another one changes in every region before the other sees it."""

    @property
    def box(self) -> Region:
        """Which part of the weight this is, also where that is all of it."""
        return self.region or Region.whole(self.shape)

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensors here, which may be a region of the weight."""
        return self.experts[0].shape

    @property
    def span(self) -> tuple[int, int]:
        """Flat range of the whole weight that this region lies in, possibly with gaps."""
        return self.box.span or (0, math.prod(self.box.shape))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every input: the models', or the recipe's ``dtype``."""
        tensors = (*self.experts, *(() if self.maybe_base is None else (self.maybe_base,)))
        if self.reader is not None:
            tensors = tuple(self.reader.convert(t.new_empty(0)) for t in tensors)
        dtype: torch.dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
        return dtype

    @property
    def base(self) -> Tensor:
        """The base model's weight, or an error that says how to name one."""
        if self.maybe_base is None:
            raise RecipeError(
                f"{self.name}: this method needs a base model; add base_model: <model>"
            )
        return self.maybe_base

    def part(self, region: Region) -> Slot:
        """The same slot, seen through one region of it."""
        if self.reader is not None:
            part = self.reader.read(region)
        else:
            at = region.within(self.box)
            base = None if self.maybe_base is None else self.maybe_base[at]
            experts = tuple(expert[at] for expert in self.experts)
            part = dataclasses.replace(self, maybe_base=base, experts=experts, region=region)
        return self.through(part) if self.through else part

    def read(self) -> Slot:
        """The same slot with its tensors read, in the recipe's dtype."""
        return self if self.reader is None and self.through is None else self.part(self.box)

    def walk(self, regions: Iterable[Region]) -> Iterator[Slot]:
        """Read regions of the weight one after another, each while the caller works on it."""
        for region in regions:
            yield self.part(region)
            if self.reader is not None:
                self.reader.release(region)

    def map_blocks(
        self, function: Callable[[Slot], T], regions: Sequence[Region] | None = None
    ) -> list[T]:
        """Apply a function to every cache-sized block of this slot: results in order.

        What ``measure`` uses: runs on every core and reads each source once, in bounded memory.
        ``regions``: walk these instead of all `blocks`, when the results are large.
        """

        def apply(region: Region) -> T:
            [result] = [function(part) for part in self.walk([region])]
            return result

        return parallel(apply, self.blocks() if regions is None else regions)

    def blocks(self, *, whole_rows: bool = False) -> list[Region]:
        """The regions that `map_blocks` walks, in order; see `Region.blocks`."""
        size = block_size(len(self.experts) + (self.maybe_base is not None))
        return list(self.box.blocks(size, whole_rows=whole_rows))

    def index(self) -> Tensor:
        """Position of every element in the whole, flattened weight: int64, same shape."""
        return self.box.index().to(self.experts[0].device)

    def deltas(self) -> Tensor:
        """Task vectors, expert minus base: float32 [N, *shape]."""
        base = self.base.float()
        deltas = torch.empty(
            len(self.experts), *base.shape, dtype=torch.float32, device=base.device
        )
        for delta, expert in zip(deltas, self.experts, strict=True):
            delta.copy_(expert).sub_(base)
        return deltas

    def generator(self, expert: int) -> torch.Generator:
        """Random generator of one expert: the same draws in any order, shard or thread.

        For methods that take whole tensors. An elementwise method draws from
        `merge_plugins.ops.random.keep_at_random`, which also agrees between regions.
        """
        digest = hashlib.sha256(f"{self.seed}/{self.name}/{expert}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Weight(Protocol):
    """A weight of a model, in memory or not: a slot, or a plan's tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape."""

    @property
    def input_dim(self) -> int | None:
        """The dimension that runs over its layer's inputs: see `Slot.input_dim`."""


def holds_matrices(weight: Weight) -> bool:
    """Whether a weight is of linear layers, one or a stack: no embedding, convolution or vector."""
    return weight.input_dim in (-1, -2) and len(weight.shape) > 1 and math.prod(weight.shape) > 0
