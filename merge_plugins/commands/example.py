"""Write a recipe that shows how a merge method is used."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from merge_plugins.plugins import Method, Parameter

BASE, EXPERTS = "org/base", ("org/math", "org/code")
"""Models that stand for the reader's."""
N_OPTIONAL = 2
"""Parameters that are shown besides those a recipe must set, at their defaults."""


def example(method: Method) -> dict[str, Any]:
    """Return a recipe of the method, as a YAML file has it: all that must be set, and a little."""
    n = max(method.min_experts, min(len(EXPERTS), method.max_experts or len(EXPERTS)))
    experts = [*EXPERTS, *(f"org/expert{i}" for i in range(3, n + 1))][:n]
    shown = _shown(method)
    common = {p.name: value for p, value in shown.items() if not p.per_expert}
    data = _needs_data(method, n)
    models = [_entry(model, shown, with_data=data) for model in experts]
    base = {"base_model": BASE} if method.needs_base else {}
    parameters = {"parameters": common} if common else {}
    return {"merge_method": method.name, **base, "models": models, **parameters}


def _entry(model: str, shown: Mapping[Parameter, Any], *, with_data: bool) -> dict[str, Any]:
    name = model.rpartition("/")[2]
    own = {p.name: name if p.follows else value for p, value in shown.items() if p.per_expert}
    parameters = {"parameters": own} if own else {}
    return {"model": model, **parameters, **({"data": f"{name}.jsonl"} if with_data else {})}


def _shown(method: Method) -> dict[Parameter, Any]:
    """Choose the parameters that an example sets, with values; one may name a model's task."""
    every = method.parameters.values()
    optional = [p for p in every if not p.required and _is_simple(p.default)][:N_OPTIONAL]
    return {p: _value(p) for p in every if p.required or p.follows or p in optional}


def _is_simple(default: Any) -> bool:
    return isinstance(default, int | float | str) and default != ""


def _value(parameter: Parameter) -> Any:
    """Return a parameter's default; without one, a value of its type that most methods can use."""
    if parameter.follows:
        return "task"  # of the entry that it stands in
    if not parameter.required:
        return parameter.default
    choices = (parameter.type, *typing.get_args(parameter.type))
    for kind in choices:
        if typing.get_origin(kind) is typing.Literal:
            return typing.get_args(kind)[0]
    return next((value for kind, value in VALUES.items() if kind in choices), "…")


VALUES: Mapping[type, Any] = {float: 0.5, int: 1, bool: True}
"""A value for each type of parameter without a default."""


def _needs_data(method: Method, n: int) -> bool:
    """Whether the method reads data with the parameters of its example."""
    fields = {
        p.field: (value,) * n if p.per_expert else value
        for p in method.parameters.values()
        if (value := _value(p)) is not None
    }
    return method.takes_data and method.reads_data(method.factory(**fields))
