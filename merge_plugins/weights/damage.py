"""Find NaN and infinity in weights, and name the file that holds them."""

from __future__ import annotations

import torch

from merge_plugins.api import Region
from merge_plugins.errors import CheckpointError
from merge_plugins.parallel import BLOCK
from merge_plugins.weights.computed import ComputedTensor, SourceTensor, stored_inputs


def refuse_damage(tensor: SourceTensor) -> None:
    """Raise `CheckpointError` at the first NaN or infinity of a weight; requires `hold`.

    For a computed weight the error names the stored one that is damaged, if one is.
    """
    first = _first_damage(tensor)
    if first is None:
        return
    if isinstance(tensor, ComputedTensor):
        for stored in stored_inputs(tensor):
            refuse_damage(stored)
        raise CheckpointError(
            f"{tensor.file}: {tensor.name} came out as NaN or infinity, first at {first}, from "
            "finite numbers. Leave out this model."
        )
    raise CheckpointError(
        f"{tensor.file}: {tensor.name} holds NaN or infinity, first at {first}. "
        "Repair or leave out this model."
    )


def _first_damage(tensor: SourceTensor) -> list[int] | None:
    """Find the first position of NaN or infinity; None if all elements are finite."""
    for block in Region.whole(tensor.shape).blocks(BLOCK):
        found = tensor.read(block)
        found = found.float() if found.dtype.itemsize == 1 else found  # torch has no isfinite of it
        bad = torch.isfinite(found).logical_not_()
        if bad.any():
            at = block.index().view(-1)[bad.view(-1).to(torch.uint8).argmax()]
            return [int(i) for i in torch.unravel_index(at, tensor.shape)]
    return None
