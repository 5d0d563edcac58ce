"""Nothing of the experts leaves the base."""

from __future__ import annotations

import torch
from contract.cases import Case, every_case, near, weights


@every_case(lambda case: case.factor)
def test_a_factor_of_zero_returns_the_base(case: Case) -> None:
    (base,) = weights(1)
    (merged,) = case.merge(case.slot(base, *near(base, 3)), **{str(case.factor): 0.0})
    assert torch.equal(merged.float(), base)
