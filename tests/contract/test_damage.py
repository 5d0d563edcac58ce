"""Methods that say so show damaged inputs in their results, where the engine then looks for it."""

from __future__ import annotations

import pytest
import torch
from contract.cases import Case, every_case

from merge_plugins.testing.promises import damage_shows, shows_damage

AT = (6, 17)


@every_case(shows_damage)
@pytest.mark.parametrize("damage", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_damaged_entry_of_any_input_shows_in_the_result(
    case: Case, damage: float, dtype: torch.dtype
) -> None:
    damage_shows(case, damage, dtype, AT)
