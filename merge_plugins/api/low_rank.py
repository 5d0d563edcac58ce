"""Matrices held as their factors: what adapters add, and what a routed expert adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """A matrix held as its factors: ``scale`` times ``up`` [m, r] times ``down`` [r, n]."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    def dense(self) -> Tensor:
        """Multiply out: [m, n]."""
        return self.scale * self.up @ self.down

    def to(self, device: torch.device) -> LowRank:
        """Copy both factors to a device, unless they are there."""
        return LowRank(self.up.to(device), self.down.to(device), self.scale)


@dataclass(frozen=True)
class Product:
    """A change of both factors of a product: (B + b)(A + a) - B A, of ``shared`` B A."""

    shared: LowRank
    up: LowRank
    """b: [m, r]."""
    down: LowRank
    """a: [r, n]."""


Branch: TypeAlias = Tensor | LowRank | Product
"""One expert's addition to a weight, shaped like it, where the router gives it weight 1. Of
products, the router's weights multiply the changes, so that changes of all experts mix.
"""
