"""The same seed gives the same bits."""

from __future__ import annotations

from contract.cases import Case, every_case

from merge_plugins.testing.engine import seed_decides
from merge_plugins.testing.family import Family
from merge_plugins.testing.promises import repeats


@every_case()
def test_the_same_inputs_give_the_same_bits(case: Case) -> None:
    repeats(case)


@every_case()
def test_the_same_seed_gives_the_same_bits_in_any_order(case: Case, family: Family) -> None:
    assert seed_decides(case, family) == case.is_random
