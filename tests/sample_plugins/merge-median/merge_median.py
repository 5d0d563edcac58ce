"""A third party's merge method."""

from dataclasses import dataclass

from torch import Tensor

from merge_plugins import ELEMENT, Slot, hookimpl


@dataclass(frozen=True)
class Median:
    """Elementwise median of the experts."""

    scale: float = 1.0
    granularity = ELEMENT

    def __call__(self, slot: Slot) -> Tensor:
        """Return the middle one of an odd number of weights, the lower of the middle two else."""
        return self.scale * slot.stacked().median(dim=0).values


@hookimpl
def register_merge_methods(register):
    """Register one method."""
    register("median", Median)
