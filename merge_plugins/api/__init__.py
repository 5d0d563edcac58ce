"""The contract between a merge method and everything else: all that a plugin imports.

A method is a frozen dataclass. Its fields are its parameters, validated in ``__post_init__``; its
call is the maths, from one `Slot` to one tensor. There is no base class. `Granularity` declares
how finely a weight may be cut. Optional protocols add what the maths needs first: `Measures`
(scalars of the whole weight), `MergesMatrices` (linear layers as matrices), `Prepares` (one look
at all models) and `Routes` (weights that depend on the input).
"""

from merge_plugins.api.low_rank import Branch, LowRank, Product
from merge_plugins.api.method import (
    ELEMENT,
    MATRIX,
    ROW,
    WHOLE,
    Batch,
    Example,
    Granularity,
    Kernel,
    MaybePerExpert,
    Measures,
    MergesMatrices,
    PerExpert,
    PerExpertText,
    Pooling,
    Prepares,
    Sources,
    Statistic,
    granularity_of,
    parameter,
)
from merge_plugins.api.region import Index, Region, as_region
from merge_plugins.api.routes import Gate, Requests, Router, Routes
from merge_plugins.api.slot import Reader, Slot, Weight, holds_matrices

__all__ = [
    "ELEMENT",
    "MATRIX",
    "ROW",
    "WHOLE",
    "Batch",
    "Branch",
    "Example",
    "Gate",
    "Granularity",
    "Index",
    "Kernel",
    "LowRank",
    "MaybePerExpert",
    "Measures",
    "MergesMatrices",
    "PerExpert",
    "PerExpertText",
    "Pooling",
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
    "granularity_of",
    "holds_matrices",
    "parameter",
]
