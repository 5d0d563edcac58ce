"""The contract between a merge method and everything else: all that a plugin imports.

A method is a frozen dataclass. Its fields are its parameters, validated in ``__post_init__``; its
call is the maths, from one `Slot` to one tensor. There is no base class. Three optional protocols
say more: `Measures` (scalars of the whole tensor), `Prepares` (one look at everything first) and
`Routes` (weights that depend on the input).
"""

from merge_plugins.api.low_rank import Branch, LowRank, Product
from merge_plugins.api.method import (
    Batch,
    Example,
    Kernel,
    MaybePerExpert,
    Measures,
    PerExpert,
    PerExpertText,
    Prepares,
    Sources,
    Statistic,
    parameter,
)
from merge_plugins.api.region import Index, Region, as_region
from merge_plugins.api.routes import Gate, Requests, Router, Routes
from merge_plugins.api.slot import Reader, Slot, Weight, holds_matrices

__all__ = [
    "Batch",
    "Branch",
    "Example",
    "Gate",
    "Index",
    "Kernel",
    "LowRank",
    "MaybePerExpert",
    "Measures",
    "PerExpert",
    "PerExpertText",
    "Prepares",
    "Product",
    "Reader",
    "Region",
    "Requests",
    "Router",
    "Routes",
    "Slot",
    "Sources",
    "Statistic",
    "Weight",
    "as_region",
    "holds_matrices",
    "parameter",
]
