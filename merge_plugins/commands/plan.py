"""`merge-plugins plan`: every merged tensor, and what makes it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from merge_plugins.commands.recipe import given_recipe
from merge_plugins.commands.values import plain
from merge_plugins.engine import open_merge


def show_plan(options: argparse.Namespace) -> int:
    """Show which tensors make each merged tensor, and with which parameters."""
    recipe = given_recipe(options).trusting(options.trust_remote_code)
    plan = open_merge(recipe).plan
    if options.json:
        print(json.dumps(plan.as_dict(), indent=2))
        return 0
    for name, tensor in plan.tensors.items():
        shown = ", ".join(f"{key}={plain(value)}" for key, value in tensor.parameters.items())
        if tensor.kernel is None:
            shown = "copied" if len(tensor.stored) == 1 else "copied: all models must agree"
        print(f"{name} {list(tensor.shape)} {_dtype(tensor.dtype)}  {shown}")
    return 0


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
