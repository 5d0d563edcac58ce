"""Write the facts of a merge method for people to read."""

from __future__ import annotations

from merge_plugins.commands.values import plain
from merge_plugins.plugins import Method, Parameter


def needs(method: Method) -> str:
    """Write what a recipe must name: "a base and 2 or more models and calibration data"."""
    low, high = method.min_experts, method.max_experts
    count = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
    models = "model" if count == "1" else "models"
    data = ""
    if method.takes_data:
        is_optional = callable(method.stats) and method.needs_data is not True
        data = f" and {'for some settings ' if is_optional else ''}calibration data"
    base = "a base and " if method.needs_base else "perhaps a base and " * method.takes_base
    return f"{base}{count} {models}{data}"


def brief(parameter: Parameter) -> str:
    """Write a parameter's name with its default, or with a star if a recipe must set it."""
    return parameter.name + ("*" if parameter.required else f"={plain(parameter.default)}")


def family(method: Method) -> str:
    """Return the heading that a method is listed under."""
    most = None if method.max_experts is None else method.max_experts + method.needs_base
    if method.version:
        return f"{method.plugin} {method.version}"
    if method.is_routed:
        return "experts weighed for each request"
    if method.takes_data:
        return "weights found with examples"
    if most is not None and most <= 2:
        return "one or two models"
    if method.needs_base:
        return "task vectors, what each model changed in the base"
    return "whole models"
