"""Where a weight is merged never shows: the way of another device, on the CPU."""

from __future__ import annotations

from contract.cases import Case, every_case

from merge_plugins.testing.engine import another_device_never_shows
from merge_plugins.testing.family import Family


@every_case()
def test_the_way_of_another_device_has_the_same_bits(case: Case, family: Family) -> None:
    another_device_never_shows(case, family)
