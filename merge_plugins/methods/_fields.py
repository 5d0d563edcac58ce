"""Declare and check parameters that several families of methods share."""

from __future__ import annotations

from typing import Any, Literal

from merge_plugins.api import PerExpert, parameter
from merge_plugins.errors import ParameterError

Rescale = Literal["none", "l1", "inverse_keep"]
Rescaling = bool | Literal[0, 1] | Rescale
"""Value of `rescale` in a recipe: a mode by name; true, the method's own mode; or false, none."""


def weight_field(*default: float) -> Any:
    """Parameter `weight`: factor on each task vector."""
    return parameter(*default, doc="factor on each task vector")


def density_field() -> Any:
    """Parameter `density`: share of each task vector kept."""
    return parameter(1.0, doc="share of each task vector kept, in [0, 1]")


def lambda_field() -> Any:
    """Parameter `lambda`: factor on the merged task vector."""
    doc = "factor on the merged task vector"
    return parameter(1.0, doc=doc, alias=("scaling_coefficient", "lambda_factor"))


def normalize_field(default: bool) -> Any:
    """Parameter `normalize`: whether each entry is divided by the sum of its weights."""
    return parameter(
        default, doc="divide each entry by the sum of the weights that contributed to it"
    )


def int8_mask_field() -> Any:
    """Parameter `int8_mask`: accepted so that mergekit's recipes run, and ignored."""
    return parameter(False, doc="accepted from mergekit recipes and ignored: it changes no result")


def rescale_field(default: bool) -> Any:
    """Parameter `rescale`: compensation for dropped entries."""
    doc = (
        "'l1' (true) restores each task vector's L1 norm after dropping, as mergekit does; "
        "'inverse_keep' divides by the density, as DARE's paper does; 'none' (false) does neither"
    )
    return parameter(default, doc=doc)


def rescaling(given: Rescaling, usual: Rescale = "l1") -> Rescale:
    """Resolve `rescale` to a mode: true is ``usual``, the method's own; false is none."""
    if isinstance(given, str):
        return given
    return usual if given else "none"


def never_adaptive(name: str) -> dict[str, str]:
    """List the names that DELLA's repository has for this method besides, each with a note."""
    note = "DELLA's code never applies the adaptive scale of this name"
    return {f"{name}_{scale}": note for scale in ("ada_row", "ada_row_inv", "ada_layer")}


def check_share(name: str, values: PerExpert) -> None:
    """Raise if a value is not a share in [0, 1]."""
    for value in values:
        if not 0 <= value <= 1:
            hint = f" For {value:g} % write {name}: {value / 100:g}." if 1 < value <= 100 else ""
            raise ParameterError(
                f"{name} is a share of the weights, in [0, 1]; got {value:g}.{hint}"
            )
