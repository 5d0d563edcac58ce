"""Allow or forbid the code of the tasks that a recipe takes its calibration data from.

Whoever uses a recipe decides, not its author: there is no key for it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from merge_plugins.recipe.data import Data


def trusting(value: Any, trust_remote_code: bool | None) -> Any:
    """Copy a recipe, or a part of one, with `Data.trust_remote_code` set wherever it has data."""
    if isinstance(value, tuple):
        return tuple(trusting(each, trust_remote_code) for each in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    if isinstance(value, Data):
        return dataclasses.replace(value, trust_remote_code=trust_remote_code)
    parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    changed = {name: trusting(part, trust_remote_code) for name, part in parts.items()}
    return dataclasses.replace(value, **changed)
