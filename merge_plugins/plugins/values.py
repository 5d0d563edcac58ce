"""Convert one scalar of a recipe to the type of the parameter it sets."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, TypeGuard, Union

from merge_plugins.errors import ParameterError, did_you_mean
from merge_plugins.plugins.method import Method, Parameter

Scalar: TypeAlias = "float | int | bool | str | None"
"""One value of a recipe."""
NUMBER = re.compile(r"(-?\d*[.,]?\d+)\s*(%?)")
"""A percentage, or a number with a decimal comma."""
TRUTH = {"true": True, "false": False}
WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def scalar(method: Method, parameter: Parameter, value: Any) -> Any:
    """Convert one value of a recipe to the parameter's type, or raise `ParameterError`."""
    kind = parameter.type
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]  # of each expert
    try:
        return _converted(value, kind)
    except (OverflowError, ValueError):
        hint = _hint(value, kind) if isinstance(value, str) else ""
        raise ParameterError(
            f"{method.name}: {parameter.name} is {_described(kind)}; got {value!r}{hint}"
        ) from None


def _hint(text: str, kind: Any) -> str:
    """Suggest what to write for a text that is no value: a number, or the nearest word."""
    number = NUMBER.fullmatch(text.strip())
    if number is None or float not in (kind, *_options(kind)):
        return did_you_mean(text, _choices(kind))
    value = float(number[1].replace(",", ".")) / (100 if number[2] else 1)
    return f"; write {value:g}"


def _converted(value: Any, kind: Any) -> Any:
    """Return ``value`` as ``kind``; a ValueError without words when it is none."""
    options = _options(kind)
    if typing.get_origin(kind) is Literal:
        return _first(value, (type(o) for o in options if o == value or str(o) == value))
    if options:  # X | None
        if type(None) in options and value in (None, "None", "none", "null"):
            return None
        return _first(value, (option for option in options if option is not type(None)))
    if kind is bool and isinstance(value, str):
        value = TRUTH.get(value.lower(), value)
    if kind is bool and value in (0, 1):  # as published recipes write it
        value = bool(value)
    if kind in (float, int) and isinstance(value, str) and value.strip():
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and is_number(value) and not math.isnan(value):
        return float(value) + 0.0  # -0.0 and 0.0 are one setting
    if kind not in WORDS or (kind is not float and type(value) is kind):
        return value
    raise ValueError


def _first(value: Any, kinds: Iterable[Any]) -> Any:
    for kind in kinds:
        try:
            return _converted(value, kind)
        except ValueError:
            continue
    raise ValueError


def _options(kind: Any) -> tuple[Any, ...]:
    choice = typing.get_origin(kind) in (Union, types.UnionType, Literal)
    return typing.get_args(kind) if choice else ()


def _choices(kind: Any) -> list[str]:
    """Return every text that a Literal in ``kind`` allows."""
    nested = [_choices(option) for option in _options(kind) if not isinstance(option, str)]
    return [o for o in _options(kind) if isinstance(o, str)] + [c for one in nested for c in one]


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, _options(kind)))
    words = [_described(option) for option in _options(kind) if option is not type(None)]
    return " or ".join(words) or WORDS.get(kind, str(kind))


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a scalar is a number, which a gradient interpolates."""
    return isinstance(value, int | float) and not isinstance(value, bool)
