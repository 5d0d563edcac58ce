"""Merging copies of one model returns that model."""

from __future__ import annotations

import torch
from contract.cases import Case, every_case, weights


@every_case(lambda case: case.keeps_one_model)
def test_copies_of_one_model_merge_to_that_model(case: Case) -> None:
    (model,) = weights(1)
    (merged,) = case.merge(case.slot(model, *[model] * 3))
    solved = 1e-12 if case.method.stats else 0.0  # solving for a zero need not give just that
    assert torch.allclose(merged.float(), model, rtol=1e-6, atol=solved)
