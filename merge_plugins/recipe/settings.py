"""Parse a setting of a recipe: a constant, a gradient over the layers, or rules by tensor name.

The language is mergekit's, so a recipe means the same in both. A setting is parsed once: scalars
are converted to their parameter's type, and the setting is reduced to its shortest form, so that
equivalent settings compare equal.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING as MISSING
from dataclasses import dataclass
from typing import Any, TypeAlias

from merge_plugins.errors import MergeWarning, ParameterError, did_you_mean
from merge_plugins.plugins import Method, registry
from merge_plugins.plugins.values import Scalar, is_number, scalar

Convert: TypeAlias = Callable[[Any], Scalar]


@dataclass(frozen=True)
class Constant:
    """One value for every tensor."""

    value: Scalar

    def at(self, tensor: str, t: float) -> Scalar:
        """Return the value, whatever the tensor and position."""
        return self.value

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """List every value in the setting, in the order written."""
        return (self.value,)

    def as_yaml(self) -> Any:
        """Convert the setting to its YAML value."""
        return self.value


@dataclass(frozen=True)
class Gradient:
    """Two or more values at even distances over the layers; numbers are interpolated linearly."""

    values: tuple[Scalar, ...]

    @functools.cached_property
    def _numbers(self) -> tuple[float, ...] | None:
        """The values, if all are numbers."""
        numbers = tuple(value for value in self.values if is_number(value))
        return numbers if len(numbers) == len(self.values) else None

    def at(self, tensor: str, t: float) -> Scalar:
        """Return the value at position ``t`` in [0, 1]: 0 is the first layer, 1 the last."""
        position = t * (len(self.values) - 1)
        below = int(position)
        if self._numbers is None:
            return self.values[below]
        above, share = min(below + 1, len(self.values) - 1), position - below
        return (1 - share) * self._numbers[below] + share * self._numbers[above]

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """List every value in the setting, in the order written."""
        return self.values

    def as_yaml(self) -> Any:
        """Convert the setting to its YAML value."""
        return list(self.values)


@dataclass(frozen=True)
class Rule:
    """A value for tensors whose names contain ``filter``, a plain substring; None: for all."""

    filter: str | None
    value: Constant | Gradient

    def matches(self, tensor: str) -> bool:
        """Check whether the rule applies to a tensor of this name."""
        return self.filter is None or self.filter in tensor

    def as_yaml(self) -> dict[str, Any]:
        """Convert the rule to its YAML mapping."""
        value = self.value.as_yaml()
        return {"value": value} if self.filter is None else {"filter": self.filter, "value": value}


@dataclass(frozen=True)
class Rules:
    """Rules of which the first match decides; only the last may lack a filter."""

    rules: tuple[Rule, ...]

    def at(self, tensor: str, t: float) -> Any:
        """Return the value for one tensor at position ``t``; MISSING when no rule matches it."""
        rule = next((rule for rule in self.rules if rule.matches(tensor)), None)
        return MISSING if rule is None else rule.value.at(tensor, t)

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """List every value in the setting, in the order written."""
        return tuple(scalar for rule in self.rules for scalar in rule.value.scalars)

    def as_yaml(self) -> Any:
        """Convert the setting to its YAML value."""
        return [rule.as_yaml() for rule in self.rules]


Setting: TypeAlias = Constant | Gradient | Rules
Settings: TypeAlias = Mapping[str, Setting]
"""Settings of one scope, by the canonical names of their parameters."""


def rules_of(setting: Setting) -> tuple[Rule, ...]:
    """List the rules of a setting; one without filters is a single rule for all tensors."""
    return setting.rules if isinstance(setting, Rules) else (Rule(None, setting),)


def over(inner: Setting | None, outer: Setting | None) -> Setting | None:
    """Combine two scopes: `inner` wins; `outer` applies where none of `inner`'s filters match."""
    if inner is None or outer is None:
        return inner or outer
    if not isinstance(inner, Rules) or inner.rules[-1].filter is None:
        return inner
    return Rules((*inner.rules, *rules_of(outer)))


def combined(inner: Settings, outer: Settings) -> dict[str, Setting]:
    """Combine the settings of two scopes, parameter by parameter; see `over`."""
    names = dict.fromkeys((*inner, *outer))
    settings = {name: over(inner.get(name), outer.get(name)) for name in names}
    return {name: setting for name, setting in settings.items() if setting is not None}


def without(settings: Settings, others: Settings) -> dict[str, Setting]:
    """Select the settings of one scope whose parameters are not set in another."""
    return {name: setting for name, setting in settings.items() if name not in others}


def as_yaml(settings: Settings) -> dict[str, Any]:
    """Convert the settings of one scope to their YAML mapping."""
    return {name: setting.as_yaml() for name, setting in settings.items()}


def read_settings(
    method: Method, parameters: Mapping[str, Any], model: str = ""
) -> dict[str, Setting]:
    """Parse the mapping under a ``parameters:``, or raise `ParameterError`.

    ``model``: the model whose entry holds it; empty for a slice's or the recipe's own.
    """
    settings: dict[str, Setting] = {}
    for word, given in parameters.items():
        parameter = method.spellings.get(word)
        if parameter is None and _is_of_another(word):
            warn_unread(method, word, model)
            continue
        if parameter is None:
            hint = did_you_mean(word, method.spellings) or "."
            raise ParameterError(
                f"{method.name}: no parameter {word!r}{hint} "
                f"Run 'merge-plugins show {method.name}' to see them."
            )
        if parameter.name in settings:
            words = " and ".join((parameter.name, *parameter.alias))
            raise ParameterError(f"{method.name}: {words} are one parameter; write it once")
        if model and not parameter.per_expert:
            raise ParameterError(
                f"{method.name}: {word} is one setting for the whole merge, not per model; move it "
                f"from the entry of {model} to the recipe's own parameters:"
            )
        settings[parameter.name] = read_setting(method, parameter.name, given)
    return settings


def _is_of_another(word: str) -> bool:
    """Whether any method has a parameter of that name."""
    return any(word in method.spellings for method in registry().methods.values())


def warn_unread(method: Method, word: str, where: object = "") -> None:
    """Warn of a parameter that a method does not read there; mergekit ignores it silently."""
    whose = f" of {where}" if where else ""
    warnings.warn(
        f"{method.name} does not read {word}{whose}, so it changes nothing; delete it. "
        f"'merge-plugins show {method.name}' lists what is read",
        MergeWarning,
        stacklevel=2,
    )


def read_setting(method: Method, name: str, given: Any) -> Setting:
    """Parse the setting of one parameter, or raise `ParameterError`."""
    parameter = method.parameters[name]
    return parsed(given, lambda value: scalar(method, parameter, value))


def parsed(given: Any, convert: Convert) -> Setting:
    """Parse a setting and reduce it to its shortest form; ``convert`` is applied to each scalar."""
    items = [given] if isinstance(given, Mapping) else given
    if not isinstance(items, list | tuple):
        return Constant(convert(given))
    n_rules = sum(isinstance(item, Mapping) for item in items)
    if not n_rules or n_rules < len(items):
        return _sequence(items, convert)
    rules = []
    for item in items:
        rules.append(_rule(item, convert))
        if rules[-1].filter is None:  # matches every tensor, so later rules have no effect
            break
    return Rules(tuple(rules)) if len(rules) > 1 or rules[0].filter else rules[0].value


def _sequence(items: Sequence[Any], convert: Convert) -> Constant | Gradient:
    """Parse a list of values: a gradient, or a constant if there is one value."""
    if not items or any(isinstance(item, Mapping) for item in items):
        raise ParameterError(
            f"a list holds numbers (a gradient over the layers) or only {{filter, value}} "
            f"rules; got {items!r}"
        )
    values = tuple(convert(item) for item in items)
    return Gradient(values) if len(values) > 1 else Constant(values[0])


def _rule(item: Mapping[str, Any], convert: Convert) -> Rule:
    pattern, value = item.get("filter"), item.get("value", MISSING)
    is_list = isinstance(value, list | tuple)
    nested = isinstance(value, Mapping) or (is_list and any(isinstance(v, Mapping) for v in value))
    known = set(item) <= {"filter", "value"} and isinstance(pattern, str | None)
    if value is MISSING or nested or not known:
        raise ParameterError(
            "a rule is {filter: <part of a tensor name>, value: <number or gradient>}; "
            f"got {dict(item)!r}"
        )
    read = _sequence(value, convert) if is_list else Constant(convert(value))
    return Rule(None if pattern in ("*", "") else pattern, read)
