"""Experts that are treated alike may come in any order."""

from __future__ import annotations

from contract.cases import Case, every_case

from merge_plugins.testing.promises import order_is_free


@every_case(lambda case: case.is_symmetric)
def test_the_order_of_equally_weighted_experts_does_not_matter(case: Case) -> None:
    order_is_free(case)
