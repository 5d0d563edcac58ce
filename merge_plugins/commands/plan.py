"""`merge-plugins plan`: what makes each merged tensor, like ones in a line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from textwrap import TextWrapper
from typing import Any

from merge_plugins.commands.groups import copied, grouped, shared
from merge_plugins.commands.recipe import given_recipe
from merge_plugins.commands.screen import columns
from merge_plugins.commands.values import plain
from merge_plugins.engine import open_merge
from merge_plugins.planning import Plan


def show_plan(options: argparse.Namespace) -> int:
    """Show which tensors make each merged tensor, and with which parameters."""
    recipe = given_recipe(options).trusting(options.trust_remote_code)
    plan = open_merge(recipe).plan
    if options.json:
        print(json.dumps(plan.as_dict(), indent=2))
        return 0
    print(*_every(plan) if options.all else _groups(plan), sep="\n")
    return 0


def _groups(plan: Plan) -> list[str]:
    """Write what all tensors have in common, then a line for each group of like tensors."""
    groups = grouped(plan.tensors.values())
    merged = [group.parameters() for group in groups if not copied(group.tensors[0])]
    everywhere = shared(merged)
    dtypes = {_dtype(tensor.dtype) for tensor in plan.tensors.values()}
    lines = _head(plan, everywhere, dtypes)
    names, shapes = [group.name for group in groups], [group.shape for group in groups]
    fill = TextWrapper(columns(), subsequent_indent=" " * 4, break_on_hyphens=False)
    wide, wider = max(map(len, names), default=0), max(map(len, shapes), default=0)
    for group, name, shape in zip(groups, names, shapes, strict=True):
        own = {k: v for k, v in group.parameters().items() if k not in everywhere}
        dtype = _dtype(group.tensors[0].dtype) if len(dtypes) > 1 else ""
        rest = "  ".join(filter(None, (dtype, copied(group.tensors[0]) or _settings(own))))
        lines.append(fill.fill(f"{name:{wide}}  {shape:{wider}}  {rest}"))
    return lines


def _head(plan: Plan, everywhere: Mapping[str, str], dtypes: set[str]) -> list[str]:
    lines = [f"{plan}."]
    if plan.recipe.base_model:
        lines.append(f"base: {plan.recipe.base_model}")
    lines += [f"model: {model}" for model in plan.experts]
    if everywhere:
        fill = TextWrapper(columns(), subsequent_indent=" " * 4)
        lines += fill.wrap(f"every tensor: {_settings(everywhere)}")
    if len(dtypes) == 1:
        lines.append(f"dtype: {dtypes.copy().pop()}")
    return [*lines, "A line for each group of like tensors; --all: for each tensor.", ""]


def _every(plan: Plan) -> list[str]:
    lines = []
    for name, tensor in plan.tensors.items():
        shown = {key: plain(value) for key, value in tensor.parameters.items()}
        what = copied(tensor) or _settings(shown)
        lines.append(f"{name} {list(tensor.shape)} {_dtype(tensor.dtype)}  {what}")
    return lines


def _settings(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
