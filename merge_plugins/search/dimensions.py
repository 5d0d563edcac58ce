"""One value of a recipe that varies: a range of numbers, or a choice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, TypeAlias

from merge_plugins.errors import MergeError, ParameterError, nearest_or_all
from merge_plugins.plugins import Method
from merge_plugins.plugins.values import is_number, scalar

Value: TypeAlias = "float | int | bool | str | None"
"""A value of a dimension, as the ledger and Optuna hold it."""
RANGE, CHOICE = ("low", "high", "log", "step"), ("choices",)
MARKS = ("low", "high", "choices")
"""Keys by which a mapping in a recipe is taken for a value that varies."""
DIGITS = 4
"""Of the values that are drawn: a fifth digit of a weight decides nothing."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    name: str
    low: float
    high: float
    log: bool
    step: float | None
    integer: bool
    default: Value
    """The parameter's own default where it lies in the range, else the middle."""

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values at which the range is checked."""
        return (self.low, self.high)

    @property
    def points(self) -> tuple[Value, ...]:
        """List all values, for a grid."""
        if self.integer and self.step is None and not self.log:
            return tuple(range(int(self.low), int(self.high) + 1))
        if self.step is None:
            raise MergeError(
                f"{self.name}: a grid needs a step or choices; "
                f"write {{low: {self.low:g}, high: {self.high:g}, step: …}}"
            )
        n = math.floor((self.high - self.low) / self.step + 1e-9)
        return tuple(self.checked(self.low + i * self.step) for i in range(n + 1))

    def checked(self, value: Value) -> Value:
        """Return the value, in the range and without digits that decide nothing."""
        assert is_number(value)
        if self.integer:
            return int(min(max(round(value), self.low), self.high))
        scale = abs(value) if self.log else self.high - self.low
        places = DIGITS - math.ceil(math.log10(scale or 1))
        if self.step:
            value = self.low + self.step * round((value - self.low) / self.step)
            places += 6  # 0.1 + 0.2 is 0.3
        return float(min(max(round(value, places), self.low), self.high))

    def at(self, value: Value) -> Value:
        """Return what stands in the recipe."""
        return value

    def of(self, value: Value) -> Value:
        """Return the dimension's value that is nearest to a parameter's value."""
        return self.checked(value) if is_number(value) else self.default


@dataclass(frozen=True)
class Choice:
    """Any of some values, which may hold dimensions themselves."""

    name: str
    values: tuple[Any, ...]
    default_label: Value = None

    @property
    def labels(self) -> tuple[Value, ...]:
        """Name each value: itself if it is a scalar, else as JSON."""
        return tuple(_label(value) for value in self.values)

    @property
    def default(self) -> Value:
        """The parameter's own default if it is a choice, else the first."""
        return self.default_label if self.default_label in self.labels else self.labels[0]

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values at which the choice is checked: all."""
        return self.labels

    points = ends

    def checked(self, value: Value) -> Value:
        """Return the value, if it is a choice."""
        if value not in self.labels:
            raise MergeError(f"{self.name}: {value!r} is none of {self.labels}")
        return value

    def at(self, value: Value) -> Any:
        """Return what stands in the recipe."""
        return self.values[self.labels.index(value)]

    def of(self, value: Value) -> Value:
        """Return the choice that is a parameter's value, else the default."""
        return value if value in self.labels else self.default


Dimension: TypeAlias = Range | Choice


def is_varied(value: Any) -> bool:
    """Whether a part of a recipe's mapping is meant to vary."""
    return isinstance(value, Mapping) and any(mark in value for mark in MARKS)


def dimension(
    given: Mapping[str, Any], name: str, parameter: str, methods: tuple[Method, ...]
) -> Dimension:
    """Parse a value that varies, or raise `MergeError`.

    ``parameter``: the parameter that it sets or is part of, empty where it sets none.
    """
    known = CHOICE if "choices" in given else RANGE
    for key in given:
        if key not in known:
            hint = nearest_or_all(str(key), known)
            raise MergeError(f"{name}: no key {key!r} in what varies{hint}")
    declared = [(m, m.spellings[parameter]) for m in methods if parameter in m.spellings]
    default = next((p.default for _, p in declared if p.default is not MISSING), None)
    if "choices" in given:
        choices = given["choices"]
        if not isinstance(choices, list | tuple) or not choices:
            raise MergeError(f"{name}: choices is a list of at least one value; got {choices!r}")
        if len({json.dumps(value, default=str) for value in choices}) < len(choices):
            raise MergeError(f"{name}: a choice is listed twice in {choices!r}")
        return Choice(name, tuple(choices), default)
    whole = all(type(given.get(key)) is int for key in ("low", "high"))
    integer = whole and not any(_takes(0.5, *each) for each in declared)
    if declared and not any(_takes(given.get("low"), *each) for each in declared):
        _refuse(name, given.get("low"), *declared[0])
    return _range(name, given, integer, default)


def _takes(value: Any, method: Method, parameter: Any) -> bool:
    try:
        return type(scalar(method, parameter, value)) is not bool
    except ParameterError:
        return False


def _refuse(name: str, value: Any, method: Method, parameter: Any) -> None:
    scalar(method, parameter, value)  # says what it is
    raise MergeError(f"{name} is no number; let it vary by choices: {{choices: [true, false]}}")


def _range(name: str, given: Mapping[str, Any], integer: bool, default: Any) -> Range:
    for key in ("low", "high"):
        if not is_number(given.get(key)) or not math.isfinite(given[key]):
            raise MergeError(f"{name}: {key} is a number; got {given.get(key)!r}")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if low >= high:
        hint = f"write {low:g}" if low == high else f"write {{low: {high:g}, high: {low:g}}}"
        raise MergeError(f"{name}: low {low:g} is not below high {high:g}; {hint}")
    if not isinstance(log, bool):
        raise MergeError(f"{name}: log is true or false; got {log!r}")
    if log and (low <= 0 or step is not None):
        what = "a low above 0" if low <= 0 else "no step; list the values as choices"
        raise MergeError(f"{name}: log needs {what}")
    if step is not None and not (is_number(step) and 0 < step <= high - low):
        raise MergeError(f"{name}: step is a number above 0, at most high - low; got {step!r}")
    if integer and step is not None and step != int(step):
        raise MergeError(f"{name}: step is a whole number, as low and high are; got {step!r}")
    if step is not None:  # the last value, as Optuna counts
        high = low + step * math.floor((high - low) / step + 1e-9)
    middle = math.sqrt(low * high) if log else (low + high) / 2
    found = Range(name, low, high, log, step, integer, middle)
    usual = default if is_number(default) and low <= default <= high else middle
    return Range(name, low, high, log, step, integer, found.checked(usual))


def _label(value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, default=lambda varied: varied.name)
