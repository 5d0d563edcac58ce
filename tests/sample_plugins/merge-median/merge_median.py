"""A third party's merge method."""

from dataclasses import dataclass

import torch

from merge_plugins import Slot, hookimpl


@dataclass(frozen=True)
class Median:
    """Elementwise median of the experts."""

    scale: float = 1.0

    def __call__(self, slot: Slot) -> torch.Tensor:
        """Return the middle one of an odd number of weights, the lower of the middle two else."""
        return self.scale * torch.stack(slot.experts).float().median(dim=0).values


@hookimpl
def register_merge_methods(register):
    """Register one method."""
    register("median", Median, elementwise=True)
