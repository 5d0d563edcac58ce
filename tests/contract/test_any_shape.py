"""Scalars, empty and odd tensors merge to finite ones of their shape."""

from __future__ import annotations

import torch
from contract.cases import Case, every_case
from hypothesis import example, given, settings
from hypothesis import strategies as st

from merge_plugins.testing.promises import shape_stays


@every_case()
@given(
    shape=st.sampled_from([(), (1,), (0,), (3, 0), (1, 1)])
    | st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
@example(shape=(5, 9, 1), dtype=torch.float16, seed=0)  # rows without a direction
@settings(max_examples=20)
def test_any_shape_merges_to_a_finite_tensor_of_that_shape(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    shape_stays(case, shape, dtype, seed)
