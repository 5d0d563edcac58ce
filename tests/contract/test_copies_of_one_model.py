"""Merging copies of one model returns that model."""

from __future__ import annotations

from contract.cases import Case, every_case

from merge_plugins.testing.promises import copies_stay


@every_case(lambda case: case.keeps_one_model)
def test_copies_of_one_model_merge_to_that_model(case: Case) -> None:
    copies_stay(case)
