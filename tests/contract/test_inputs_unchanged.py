"""A merge is a new tensor, and leaves what it is made of alone."""

from __future__ import annotations

import pytest
import torch
from contract.cases import Case, every_case, near, weights


@every_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_are_bit_identical_afterwards(case: Case, dtype: torch.dtype) -> None:
    (base,) = weights(1)
    tensors = [tensor.to(dtype) for tensor in (base, *near(base, 3))]
    before = [tensor.clone() for tensor in tensors]
    (merged,) = case.merge(case.slot(*tensors))
    merged.fill_(7.0)  # the result is a new tensor
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
