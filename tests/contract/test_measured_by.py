"""What a method says its measurement depends on is all that it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from contract.cases import Case, every_case

from merge_plugins.plugins import registry
from merge_plugins.testing.promises import measured_by_no_other, says_what_it_measures

SAYING = [name for name, m in registry().methods.items() if says_what_it_measures(Case(m))]


@every_case(says_what_it_measures)
def test_no_other_parameter_changes_what_is_measured(case: Case) -> None:
    measured_by_no_other(case)


@pytest.mark.parametrize("name", SAYING)
def test_what_is_named_is_a_field(name: str) -> None:
    factory = registry().methods[name].factory
    fields: Mapping[str, Any] = {field.name: field for field in dataclasses.fields(factory)}  # type: ignore[arg-type]
    assert {*factory.measured_by} < fields.keys()
    assert hasattr(factory, "measure")


def test_the_usual_ones_say_it() -> None:
    assert {"ties", "dare_ties", "dare_linear", "breadcrumbs", "della", "slerp"} <= {*SAYING}
