"""The suite can run every method that is registered."""

from __future__ import annotations

from contract.cases import REQUIRED, every_method

from merge_plugins.plugins import registry


@every_method
def test_required_parameters_have_a_value_in_this_suite(name: str) -> None:
    required = {p.name for p in registry().get(name).parameters.values() if p.required}
    assert required <= REQUIRED.keys()
