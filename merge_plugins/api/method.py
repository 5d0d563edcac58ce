"""The contract of a merge method: types of its parameters, its granularity, optional protocols."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from merge_plugins.api.slot import Slot, Weight

Batch: TypeAlias = Mapping[str, Tensor]
"""Inputs of a live model by argument name, and the labels."""
PerExpert: TypeAlias = tuple[float, ...]
"""Type of a parameter that takes one number per expert, in the order of the recipe's models."""
PerExpertText: TypeAlias = tuple[str, ...]
"""Type of a parameter that takes one text per expert."""
MaybePerExpert: TypeAlias = tuple[float | None, ...]
"""Type of a parameter that takes one number, or none, per expert."""


class Granularity(Enum):
    """Into which parts of a weight a method may be cut without changing a bit of the result.

    A method declares the finest that is true as ``granularity``, an attribute or a property beside
    its maths; without one it is handed whole weights. The finer, the less memory a merge takes.
    """

    ELEMENT = "element"
    """Each output element depends on the same element of the inputs and on what ``measure``
    returned: the kernel is called on any region."""
    ROW = "row"
    """Each output row, along the last dimension, depends on the same row of the inputs and on what
    ``measure`` returned: the kernel is called on any number of whole rows."""
    MATRIX = "matrix"
    """Matrices of linear layers, one of a stack at a time, are merged by `MergesMatrices`; every
    other weight element by element."""
    WHOLE = "whole"
    """Anything may depend on anything: the kernel is called on whole weights."""


ELEMENT, ROW, MATRIX, WHOLE = Granularity


def granularity_of(kernel: Any) -> Granularity:
    """Return the granularity that a kernel's class declares; WHOLE if it declares none."""
    found: Granularity = getattr(kernel, "granularity", WHOLE)
    return found


Kernel: TypeAlias = Callable[[Slot], Tensor]
"""Pure: no input or output, no globals, inputs untouched. The engine rounds the result once.

NaN and infinity are refused in the inputs before a kernel sees them. One whose result is NaN or
infinite wherever an input is, as a sum's is, may say ``shows_damage = True``: its inputs are then
looked at only if its result is not finite, which saves a pass over each.
"""
Statistic: TypeAlias = Callable[[nn.Module, Iterable[Batch]], Iterable[Mapping[str, Tensor]]]
"""From one live model and calibration batches to one tensor per weight, by the module's own
parameter names, in pieces: each is on disk before the next is asked for. Batches may be walked
more than once; each walk moves a progress bar."""


@dataclass(frozen=True)
class Example:
    """One calibration example."""

    prompt: str
    """The text, the query, or the instruction as the model would see it."""
    response: str = ""
    """The text that should follow, "" for none; for a classifier, the second text of a pair."""
    label: float | None = None
    """The class, or a regression's target."""
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pooling:
    """How embedders turn the states of a text's tokens into one vector."""

    modes: tuple[str, ...]
    """Modes of sentence-transformers (cls, mean, ...), and ``normalize`` for length 1."""
    max_length: int | None = None
    """Tokens that are read of a text."""


class Sources(Protocol):
    """A lazy, read-only view of the models; at most one live model is resident."""

    names: Sequence[str]
    """The experts, as the recipe names them."""
    seed: int
    """The recipe's seed."""

    def slots(self) -> Iterator[Weight]:
        """Iterate over every float weight, whole and not read yet, in checkpoint order."""

    def module(self, expert: int) -> nn.Module:
        """Load an expert: float32, in evaluation mode. Loading another drops the last.

        Its parameters may be replaced but not written to: they may be pages of the file.
        """

    def tokenizer(self, expert: int) -> Any:
        """Load an expert's own tokenizer."""

    def pooling(self) -> Pooling:
        """Find how the models embed a text, on which all agree, or raise an error that asks."""

    def examples(self, expert: int) -> tuple[Example, ...]:
        """Read an expert's calibration data, or raise an error that shows how to name some."""

    def batches(self, expert: int) -> Iterator[Batch]:
        """Tokenise an expert's examples: int64 input_ids, attention_mask, labels [batch, length].

        Padded on the right to the longest of its batch. Labels are -100 outside the response, and
        everywhere in padding; a text without a response is all response. For a classifier, labels
        are the examples' own [batch], and absent where they have none.
        """

    def stat(self, name: str, expert: int) -> Mapping[str, Tensor]:
        """Load or compute a statistic of an expert, by checkpoint name; float32, on disk."""


@runtime_checkable
class Measures(Protocol):
    """A method that needs scalars of the whole weight: thresholds, norms, dot products.

    Its class may name, as ``measured_by``, all the fields that `measure` depends on, such as
    ``("density",)``. A merge that differs in other parameters alone then measures nothing again.
    """

    def measure(self, weight: Weight, /) -> Mapping[str, Tensor]:
        """Compute them block by block; the result arrives as ``slot.measured``."""


@runtime_checkable
class MergesMatrices(Protocol):
    """A method whose granularity is MATRIX."""

    def merge_matrix(self, weight: Weight, /) -> Tensor:
        """Merge a matrix that is read in pieces: [rows, columns], float32 or ``rounds_to``."""


@runtime_checkable
class Prepares(Protocol):
    """A method that reads all models once before it becomes a kernel."""

    def prepare(self, sources: Sources, /) -> Kernel | None:
        """Return the kernel for every weight, or None if this setting works weight by weight."""


def parameter(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    alias: Sequence[str] = (),
    follows: Literal["", "task"] = "",
) -> Any:
    """Declare a field of a method with its meaning and other spellings.

    Without a default the recipe must set it. A field of type `PerExpert` has one value for each
    expert; its default is one number for all. A plain dataclass field is a parameter without
    documentation, which is all a small plugin needs. A `PerExpertText` that ``follows`` task is the
    ``task:`` of each model's entry unless a setting says otherwise.
    """
    about = {"doc": doc, "alias": tuple(alias), "follows": follows}
    return field(default=default, metadata=about)
