"""Nothing of the experts leaves the base."""

from __future__ import annotations

from contract.cases import Case, every_case

from merge_plugins.testing.promises import zero_is_the_base


@every_case(lambda case: case.factor)
def test_a_factor_of_zero_returns_the_base(case: Case) -> None:
    zero_is_the_base(case, str(case.factor))
