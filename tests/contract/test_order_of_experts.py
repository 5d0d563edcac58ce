"""Experts that are treated alike may come in any order."""

from __future__ import annotations

import itertools

import torch
from contract.cases import Case, every_case, near, weights


@every_case(lambda case: case.is_symmetric)
def test_the_order_of_equally_weighted_experts_does_not_matter(case: Case) -> None:
    (base,) = weights(1)
    experts = near(base, case.n_experts)
    (first, *others) = (
        case.merge(case.slot(base, *order))[0] for order in itertools.permutations(experts)
    )
    for other in others:
        assert torch.allclose(first, other, rtol=1e-6, atol=1e-6)
