"""Names of dtypes, as torch has them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from merge_plugins.errors import RecipeError, did_you_mean

DTYPES = ("float32", "float16", "bfloat16", "float64")


def dtype_name(given: Any, key: str = "dtype", also: Collection[str] = ()) -> str:
    """Check a dtype and return torch's name of it, or raise `RecipeError`.

    ``also``: other words that are allowed.
    """
    name, known = str(given).removeprefix("torch."), (*DTYPES, *also)
    if name not in known:
        hint = did_you_mean(name.replace("fp", "float").replace("bf", "bfloat"), known)
        raise RecipeError(f"{key} is one of {', '.join(known)}; got {given!r}{hint}")
    return name
