"""The language of one setting: a value, a gradient over the layers, or rules by tensor name.

It is mergekit's, so that a recipe means the same in both. A setting comes out of `canonical` in
one of three forms: a scalar; a list of two or more scalars; a list of ``{filter, value}`` rules of
which only the last may lack the filter.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING as MISSING
from typing import Any, Literal, TypeAlias, Union

from merge_plugins.errors import ParameterError, did_you_mean
from merge_plugins.registry import Method, Parameter

Setting: TypeAlias = Any
"""float | int | bool | str | None, a list of them, a ``{filter, value}`` rule, a list of rules."""

TRUTH = {"true": True, "false": False}
WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def resolve(setting: Setting, tensor: str, t: float) -> Any:
    """Return the value for one tensor at depth ``t`` in [0, 1]; MISSING when no rule matches it."""
    rules = [setting] if isinstance(setting, Mapping) else setting
    if not isinstance(rules, list | tuple):
        return setting
    if isinstance(rules[0], Mapping):
        matching = (rule for rule in rules if matches(rule.get("filter"), tensor))
        rule = next(matching, None)
        return MISSING if rule is None else resolve(rule["value"], tensor, t)
    position = t * (len(rules) - 1)
    below = int(position)
    if not all(_is_number(value) for value in rules):
        return rules[below]
    above, share = min(below + 1, len(rules) - 1), position - below
    return (1 - share) * rules[below] + share * rules[above]


def matches(pattern: str | None, tensor: str) -> bool:
    """Whether a rule's filter, a plain substring, applies to this tensor."""
    return pattern is None or pattern == "*" or pattern in tensor


def leaves(setting: Setting) -> list[Any]:
    """Return every scalar of a setting, in the order written."""
    if isinstance(setting, Mapping):
        return leaves(setting["value"])
    if isinstance(setting, list | tuple):
        return [leaf for item in setting for leaf in leaves(item)]
    return [setting]


def filters(setting: Setting) -> list[str]:
    """Return every filter of a setting that asks something of the name, in the order written."""
    found = [rule.get("filter") for rule in _rules(setting)]
    return [pattern for pattern in found if pattern not in (None, "*")]


def over(inner: Setting, outer: Setting) -> Setting:
    """Return the one setting that means: ``inner``, and where it says nothing, ``outer``."""
    if inner is MISSING:
        return outer
    rules = _as_rules(inner)
    if outer is MISSING or matches(rules[-1].get("filter"), ""):
        return inner
    return [*rules, *_as_rules(outer)]


def canonical(setting: Setting, convert: Callable[[Any], Any]) -> Setting:
    """Return the shortest spelling of a setting, each scalar passed through ``convert``."""
    items = [setting] if isinstance(setting, Mapping) else setting
    if not isinstance(items, list | tuple):
        return convert(setting)
    n_rules = sum(isinstance(item, Mapping) for item in items)
    if not items or 0 < n_rules < len(items):
        raise ParameterError(
            f"a list holds numbers (a gradient over the layers) or only {{filter, value}} "
            f"rules; got {setting!r}"
        )
    if not n_rules:
        values = [convert(item) for item in items]
        return values if len(values) > 1 else values[0]
    rules = []
    for item in items:
        rules.append(_rule(item, convert))
        if "filter" not in rules[-1]:  # it matches everything: later rules are never read
            break
    return rules if len(rules) > 1 or "filter" in rules[0] else rules[0]["value"]


def renamed(
    method: Method, parameters: Mapping[str, Setting], model: str = ""
) -> dict[str, Setting]:
    """Return one scope's parameters under their canonical names, canonically spelled.

    ``model`` names the entry they were written in; empty: they are a slice's, or the recipe's.
    """
    found: dict[str, Setting] = {}
    for word, setting in parameters.items():
        parameter = method.spellings.get(word)
        if parameter is None:
            hint = did_you_mean(word, method.spellings) or "."
            raise ParameterError(
                f"{method.name}: no parameter {word!r}{hint} "
                f"Run 'merge-plugins show {method.name}' to see them."
            )
        if parameter.name in found:
            words = " and ".join((parameter.name, *parameter.alias))
            raise ParameterError(f"{method.name}: {words} are one parameter; write it once")
        if model and not parameter.per_expert:
            raise ParameterError(
                f"{method.name}: {word} is one setting for the whole merge, not per model; move it "
                f"from the entry of {model} to the recipe's own parameters:"
            )
        found[parameter.name] = _canonical(method, parameter, setting)
    return found


def _canonical(method: Method, parameter: Parameter, setting: Setting) -> Setting:
    return canonical(setting, lambda value: scalar(method, parameter, value))


def scalar(method: Method, parameter: Parameter, value: Any) -> Any:
    """Return ``value`` as the parameter's type, or raise `ParameterError`."""
    kind = parameter.type
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]  # of each expert
    try:
        return _converted(value, kind)
    except ValueError:
        hint = did_you_mean(value, _choices(kind)) if isinstance(value, str) else ""
        raise ParameterError(
            f"{method.name}: {parameter.name} is {_described(kind)}; got {value!r}{hint}"
        ) from None


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
    if kind in (float, int) and isinstance(value, str) and value.strip():
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and _is_number(value) and not math.isnan(value):
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


def _rule(item: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    pattern, value = item.get("filter"), item.get("value", MISSING)
    nested = isinstance(value, Mapping) or (isinstance(value, list) and _rules(value))
    known = set(item) <= {"filter", "value"} and isinstance(pattern, str | None)
    if value is MISSING or nested or not known:
        raise ParameterError(
            "a rule is {filter: <part of a tensor name>, value: <number or gradient>}; "
            f"got {dict(item)!r}"
        )
    found = {"value": canonical(value, convert)}
    return found if pattern in (None, "*", "") else {"filter": pattern, **found}


def _rules(setting: Setting) -> list[Mapping[str, Any]]:
    items = setting if isinstance(setting, list | tuple) else [setting]
    return [item for item in items if isinstance(item, Mapping)]


def _as_rules(setting: Setting) -> list[Mapping[str, Any]]:
    items = setting if isinstance(setting, list | tuple) else [setting]
    is_rules = items and all(isinstance(item, Mapping) for item in items)
    return list(items) if is_rules else [{"value": setting}]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
