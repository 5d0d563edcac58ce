"""Methods that say so show damaged inputs in their results, where the engine then looks for it."""

from __future__ import annotations

import pytest
import torch
from contract.cases import Case, every_case, near, weights

AT = (6, 17)


@every_case(lambda case: getattr(case.kernel(), "shows_damage", False))
@pytest.mark.parametrize("damage", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_damaged_entry_of_any_input_shows_in_the_result(
    case: Case, damage: float, dtype: torch.dtype
) -> None:
    (base,) = weights(1)
    models = [model.to(dtype) for model in (base, *near(base, case.n_experts))]
    for damaged in range(not case.has_base, len(models)):
        for others in (0, 1):  # also where the others are 0, or equal
            inputs = [model.clone() * others for model in models]
            inputs[damaged][AT] = damage
            (merged,) = case.merge(case.slot(*inputs))
            assert not merged[AT].isfinite(), damaged
