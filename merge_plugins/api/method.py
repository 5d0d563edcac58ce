"""The contract between a merge method and everything else.

A method is a frozen dataclass. Its fields are its parameters, validated in ``__post_init__``; its
call is the maths, from one `Slot` to one tensor. There is no base class. Three optional protocols
say more: `Measures` (scalars of the whole tensor), `Prepares` (one look at everything first) and
`merge_plugins.api.Routes` (weights that depend on the input).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from merge_plugins.api.slot import Slot

Batch: TypeAlias = Mapping[str, Tensor]
PerExpert: TypeAlias = tuple[float, ...]
"""Type of a parameter that takes one number per expert, in the order of the recipe's models."""
PerExpertText: TypeAlias = tuple[str, ...]
"""The same for a text."""
MaybePerExpert: TypeAlias = tuple[float | None, ...]
"""The same for a number that need not be given."""


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


@dataclass(frozen=True)
class Example:
    """One calibration example."""

    prompt: str
    """The text, the query, or the instruction as the model would see it."""
    response: str = ""
    """What should follow, "" for a plain text; for a classifier, the second text of a pair."""
    label: float | None = None
    """The class, or a regression's target."""
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
