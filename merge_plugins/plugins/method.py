"""A registered merge method or statistic, with its parameters and facts."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from merge_plugins.api import MATRIX, Statistic, granularity_of

T = TypeVar("T")
BUILTIN = "merge_plugins.methods"
"""Plugins of this package begin with it."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as a recipe may set it."""

    name: str
    field: str
    type: Any
    default: Any
    doc: str
    per_expert: bool
    alias: tuple[str, ...] = ()
    follows: str = ""
    """Key of a model's entry that gives the value where no setting does; "" for none."""

    @property
    def required(self) -> bool:
        """Whether a recipe must set it."""
        return self.default is dataclasses.MISSING


def stated(fact: T | Callable[[Any], T], kernel: Any) -> T:
    """Return ``fact``, or ``fact(kernel)`` if the plugin registered a function."""
    return fact(kernel) if callable(fact) else fact


@dataclass(frozen=True)
class Method:
    """A registered merge method, with the facts its plugin registered."""

    name: str
    factory: Callable[..., Any]
    plugin: str
    version: str = ""
    known_as: str = ""
    """Name of the plugin in digests: that of its first release."""
    layout: bool | Callable[[Any], bool] = False
    copies: Callable[[Any], bool] | None = None
    needs_base: bool = False
    takes_base: bool = False
    merges_base: bool = False
    min_experts: int = 1
    max_experts: int | None = None
    stats: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    needs_data: bool | Callable[[Any], bool] = False
    paper: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameters by canonical name, in the order of the dataclass."""
        hints = typing.get_type_hints(self.factory)
        found = {}
        for f in dataclasses.fields(self.factory):  # type: ignore[arg-type]
            name = f.name.rstrip("_")  # lambda_ is spelled lambda in recipes
            per_expert = typing.get_args(hints[f.name])[1:] == (...,)  # PerExpert and the like
            said = {key: f.metadata[key] for key in ("alias", "follows") if key in f.metadata}
            about = (f.default, f.metadata.get("doc", ""), per_expert)
            found[name] = Parameter(name, f.name, hints[f.name], *about, **said)
        return found

    @cached_property
    def spellings(self) -> Mapping[str, Parameter]:
        """Parameters by every spelling a recipe may use."""
        return {word: p for p in self.parameters.values() for word in (p.name, *p.alias)}

    @property
    def is_guest(self) -> bool:
        """Whether a plugin registered the method that is no part of this package."""
        return not self.plugin.startswith(BUILTIN)

    def __str__(self) -> str:
        source = f"{self.plugin} {self.version}".strip()
        return f"{self.name} (plugin {source})" if self.is_guest else self.name

    @property
    def summary(self) -> str:
        """First line of the method's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    def statistics(self, kernel: Any) -> tuple[str, ...]:
        """Name the calibration statistics that a built kernel reads."""
        return stated(self.stats, kernel)

    def reads_data(self, kernel: Any) -> bool:
        """Whether a built kernel needs calibration data."""
        return stated(self.needs_data, kernel) or bool(self.statistics(kernel))

    @property
    def is_routed(self) -> bool:
        """Whether the method weighs its experts for each request: see `api.Routes`."""
        return hasattr(self.factory, "branches")

    @property
    def takes_data(self) -> bool:
        """Whether some setting of the method needs calibration data."""
        return bool(self.stats) or bool(self.needs_data)

    def works_from(self, base: object | None) -> bool:
        """Whether kernels receive that base model apart, not as one of the experts."""
        return base is not None and (self.needs_base or self.takes_base)

    def is_copy(self, kernel: Any) -> bool:
        """Whether a built kernel returns its only expert unchanged."""
        return self.copies is not None and self.copies(kernel)

    def needs_layout(self, kernel: Any) -> bool:
        """Whether a built kernel needs `Slot.input_dim`."""
        return stated(self.layout, kernel) or granularity_of(kernel) is MATRIX


@dataclass(frozen=True)
class RegisteredStatistic:
    """A calibration statistic and the plugin it comes from."""

    name: str
    function: Statistic
    plugin: str
    version: str = ""
    known_as: str = ""
    """Name of the plugin in cache keys: that of its first release."""
    elementwise: bool = False

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]
