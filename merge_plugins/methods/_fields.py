"""Parameters that several families of methods share, and checks of their values."""

from __future__ import annotations

from typing import Any, Literal

from merge_plugins.api import PerExpert, parameter
from merge_plugins.errors import ParameterError

Rescale = Literal["none", "l1", "inverse_keep"]
Rescaling = bool | Literal[0, 1] | Rescale
"""What a recipe may say: a word, or whether to do what the method's own code does."""


def weight_field(*default: float) -> Any:
    """Declare the weight of each task vector."""
    return parameter(*default, doc="factor on each task vector")


def density_field() -> Any:
    """Declare how much of each task vector is kept."""
    return parameter(1.0, doc="share of each task vector kept, in [0, 1]")


def lambda_field() -> Any:
    """Declare the factor on the whole."""
    doc = "factor on the merged task vector"
    return parameter(1.0, doc=doc, alias=("scaling_coefficient", "lambda_factor"))


def normalize_field(default: bool) -> Any:
    """Declare whether weights are made to sum to one."""
    return parameter(default, doc="divide by the sum of the weights that took part")


def int8_mask_field() -> Any:
    """Declare what mergekit's recipes may say and nothing reads."""
    return parameter(False, doc="accepted from mergekit recipes; it never changed a result")


def rescale_field(default: bool) -> Any:
    """Declare how dropping is made up for."""
    doc = (
        "'l1' (true) restores each task vector's L1 norm after dropping, as mergekit does; "
        "'inverse_keep' divides by the density, as DARE's paper does; 'none' (false) does neither"
    )
    return parameter(default, doc=doc)


def rescaling(given: Rescaling, usual: Rescale = "l1") -> Rescale:
    """Return what a recipe's word for it means; ``usual``: what the method's own code does."""
    if isinstance(given, str):
        return given
    return usual if given else "none"


def never_adaptive(name: str) -> dict[str, str]:
    """Return the names under which DELLA's repository has a method a second, third, fourth time."""
    said = "DELLA's code never applies the adaptive scale of this name"
    return {f"{name}_{scale}": said for scale in ("ada_row", "ada_row_inv", "ada_layer")}


def check_share(name: str, values: PerExpert) -> None:
    """Raise if a value is not a share in [0, 1]."""
    for value in values:
        if not 0 <= value <= 1:
            hint = f" For {value:g} % write {name}: {value / 100:g}." if 1 < value <= 100 else ""
            raise ParameterError(
                f"{name} is a share of the weights, in [0, 1]; got {value:g}.{hint}"
            )
