"""A merge is a new tensor, and leaves what it is made of alone."""

from __future__ import annotations

import pytest
import torch
from contract.cases import Case, every_case

from merge_plugins.testing.promises import inputs_stay


@every_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_are_bit_identical_afterwards(case: Case, dtype: torch.dtype) -> None:
    inputs_stay(case, dtype)
