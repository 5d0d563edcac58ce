"""What a method says its measurement depends on is all that it depends on."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from contract.cases import Case, every_case, near, same_bits, weights

from merge_plugins.errors import ParameterError
from merge_plugins.plugins import registry
from merge_plugins.plugins.method import Parameter

NUMBERS = (0.0, 0.125, 0.4, 0.9, 1.0, 2.0, 3)


def says(case: Case) -> bool:
    return hasattr(case.method.factory, "measured_by")


def others(parameter: Parameter, value: Any) -> Iterator[Any]:
    """Other values of a parameter, some of which the method may refuse."""
    kind = parameter.type
    options = typing.get_args(kind)
    if kind is bool:
        yield not value
    elif typing.get_origin(kind) is typing.Literal:
        yield from options
    elif parameter.per_expert:
        yield from ((number, 0.3, 0.7) for number in NUMBERS)
    else:
        yield from NUMBERS


@every_case(says)
def test_no_other_parameter_changes_what_is_measured(case: Case) -> None:
    base = weights(1)[0]
    slot = case.slot(base, *near(base, case.n_experts))
    before = case.measured(slot)
    free = [
        parameter
        for parameter in case.method.parameters.values()
        if parameter.field not in case.method.factory.measured_by
    ]
    for parameter in free:
        tried = 0
        for value in others(parameter, getattr(case.kernel(), parameter.field)):
            try:
                changed = dataclasses.replace(
                    case, parameters={**case.parameters, parameter.name: value}
                )
                changed.kernel()
            except (ParameterError, ValueError):
                continue
            tried += 1
            assert same_bits(before, changed.measured(slot)), (parameter.name, value)
        assert tried, f"no other value of {parameter.name} was accepted"


@pytest.mark.parametrize("name", [n for n, m in registry().methods.items() if says(Case(m, {}))])
def test_what_is_named_is_a_field(name: str) -> None:
    factory = registry().methods[name].factory
    fields: Mapping[str, Any] = {field.name: field for field in dataclasses.fields(factory)}  # type: ignore[arg-type]
    assert {*factory.measured_by} < fields.keys()
    assert hasattr(factory, "measure")


def test_the_usual_ones_say_it() -> None:
    saying = {name for name, method in registry().methods.items() if says(Case(method, {}))}
    assert {"ties", "dare_ties", "dare_linear", "breadcrumbs", "della", "slerp"} <= saying
