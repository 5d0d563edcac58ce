"""The contract between a merge method and everything else.

A method is a frozen dataclass. Its fields are its parameters, validated in ``__post_init__``; its
call is the maths, from one `Slot` to one tensor. There is no base class. Three optional protocols
say more: `Measures` (scalars of the whole tensor), `Prepares` (one look at everything first) and
`merge_plugins.routes.Routes` (weights that depend on the input).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from merge_plugins.blocks import block_size, parallel
from merge_plugins.data import Example
from merge_plugins.errors import RecipeError
from merge_plugins.routes import Branch as Branch
from merge_plugins.routes import Gate as Gate
from merge_plugins.routes import LowRank as LowRank
from merge_plugins.routes import Product as Product
from merge_plugins.routes import Requests as Requests
from merge_plugins.routes import Router as Router
from merge_plugins.routes import Routes as Routes

T = TypeVar("T")
Batch: TypeAlias = Mapping[str, Tensor]
PerExpert: TypeAlias = tuple[float, ...]
"""Type of a parameter that takes one number per expert, in the order of the recipe's models."""
PerExpertText: TypeAlias = tuple[str, ...]
"""The same for a text."""
MaybePerExpert: TypeAlias = tuple[float | None, ...]
"""The same for a number that need not be given."""


@dataclass(frozen=True)
class Region:
    """A box of a weight: one half-open range per dimension of the whole shape."""

    shape: tuple[int, ...]
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """Return the region that is all of a weight."""
        return cls(tuple(shape), tuple((0, size) for size in shape))

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Shape of the box."""
        return tuple(stop - start for start, stop in self.bounds)

    @functools.cached_property
    def numel(self) -> int:
        """Number of elements in the box."""
        return math.prod(self.sizes)

    @functools.cached_property
    def span(self) -> tuple[int, int] | None:
        """Flat half-open range of a box that lies in one piece in memory, else None."""
        sizes = self.sizes
        free = next((i for i, n in enumerate(sizes) if n != 1), len(sizes))
        if sizes[free + 1 :] != self.shape[free + 1 :]:
            return None
        strides = [math.prod(self.shape[i + 1 :]) for i in range(len(sizes))]
        first = sum(start * stride for (start, _), stride in zip(self.bounds, strides, strict=True))
        return first, first + self.numel

    def of(self, tensor: Tensor) -> Tensor:
        """View this box of a whole tensor."""
        return tensor[tuple(slice(start, stop) for start, stop in self.bounds)]

    def of_rows(self, values: Tensor) -> Tensor:
        """View one value per row of the whole weight, [*shape[:-1]], so that it meets this box."""
        if not self.shape:
            return values
        return values[tuple(slice(*bounds) for bounds in self.bounds[:-1])].unsqueeze(-1)

    def rows(self) -> Region:
        """The same box, with whole rows: all of the last dimension."""
        return Region(self.shape, (*self.bounds[:-1], *((0, size) for size in self.shape[-1:])))

    def shared(self, other: Region) -> Region:
        """The part of this box that another one of the same weight covers too."""
        pairs = zip(self.bounds, other.bounds, strict=True)
        return Region(self.shape, tuple((max(a, c), min(b, d)) for (a, b), (c, d) in pairs))

    def within(self, outer: Region) -> tuple[slice, ...]:
        """Where this box lies in a tensor that holds ``outer``."""
        pairs = zip(self.bounds, outer.bounds, strict=True)
        return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in pairs)

    def index(self) -> Tensor:
        """Flat positions in the whole tensor: int64, shaped like the box."""
        if self.span is not None:
            return torch.arange(*self.span).view(self.sizes)
        index = torch.zeros((), dtype=torch.int64)
        for start_stop, size in zip(self.bounds, self.shape, strict=True):
            index = index.unsqueeze(-1) * size + torch.arange(*start_stop)
        return index

    def matrices(self) -> Iterator[Region]:
        """The matrices that this box touches, one by one: all of the last two dimensions."""
        whole = tuple((0, size) for size in self.shape[-2:])
        for at in itertools.product(*(range(*bounds) for bounds in self.bounds[:-2])):
            yield Region(self.shape, (*((i, i + 1) for i in at), *whole))

    def blocks(self, numel: int, *, whole_rows: bool = False) -> Iterator[Region]:
        """Cut into boxes of at most ``numel`` elements, in order, outermost dimensions first.

        ``whole_rows``: never cut the last dimension, however many elements that takes.
        """
        outer = self.sizes[:-1] if whole_rows else self.sizes
        dim = next((i for i, size in enumerate(outer) if size > 1), None)
        if self.numel <= numel or dim is None:
            yield self
            return
        start, stop = self.bounds[dim]
        step = max(1, (stop - start) * numel // self.numel)
        for at in range(start, stop, step):
            part = (at, min(at + step, stop))
            bounds = (*self.bounds[:dim], part, *self.bounds[dim + 1 :])
            yield from Region(self.shape, bounds).blocks(numel, whole_rows=whole_rows)


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
        `merge_plugins.arithmetic.keep_at_random`, which also agrees between regions.
        """
        digest = hashlib.sha256(f"{self.seed}/{self.name}/{expert}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


Kernel: TypeAlias = Callable[[Slot], Tensor]
"""Pure: no input or output, no globals, inputs untouched. The runner rounds the result once."""
Statistic: TypeAlias = Callable[[nn.Module, Iterable[Batch]], Iterable[Mapping[str, Tensor]]]
"""From one live model and calibration batches to one tensor per weight, by the module's own
parameter names, in pieces: each is on disk before the next is asked for. Batches may be walked
more than once; each walk moves a progress bar."""


class Sources(Protocol):
    """A lazy, read-only view of the models; at most one slot or one live model is resident."""

    names: Sequence[str]
    seed: int
    """The recipe's seed."""

    def slots(self) -> Iterator[Slot]:
        """Every float weight once, whole, in checkpoint order; tensors are memory-mapped."""

    def module(self, expert: int) -> nn.Module:
        """The live expert: float32, in evaluation mode. Asking for another drops the last.

        Its parameters may be replaced but not written to: they may be pages of the file.
        """

    def tokenizer(self, expert: int) -> Any:
        """The expert's own tokenizer."""

    def examples(self, expert: int) -> tuple[Example, ...]:
        """The expert's calibration data, or an error that says how to name some."""

    def batches(self, expert: int) -> Iterator[Batch]:
        """The same, tokenised: int64 input_ids, attention_mask and labels, each [batch, length].

        Padded on the right to the longest of its batch. Labels are -100 outside the response, and
        everywhere in padding; a text without a response is all response. For a classifier, labels
        are the examples' own [batch], and absent where they have none.
        """

    def stat(self, name: str, expert: int) -> Mapping[str, Tensor]:
        """One calibration statistic of one expert, by checkpoint name; float32, on disk."""


@runtime_checkable
class Measures(Protocol):
    """Scalars of one whole weight that an elementwise kernel needs: thresholds, norms, dots."""

    def measure(self, slot: Slot, /) -> Mapping[str, Tensor]:
        """Look at the whole weight block by block; the result arrives as ``slot.measured``."""


@runtime_checkable
class Prepares(Protocol):
    """A method that looks at all models once before it becomes a kernel."""

    def prepare(self, sources: Sources, /) -> Kernel | None:
        """The kernel for every weight, or None when this setting works weight by weight."""


def parameter(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    alias: Sequence[str] = (),
) -> Any:
    """Declare a field of a method with its meaning and other spellings.

    Without a default the recipe must set it. A field of type `PerExpert` has one value for each
    expert; its default is one number for all. A plain dataclass field is a parameter without
    documentation, which is all a small plugin needs.
    """
    return field(default=default, metadata={"doc": doc, "alias": tuple(alias)})
