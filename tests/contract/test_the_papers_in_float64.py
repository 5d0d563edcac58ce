"""Every method of ours agrees with its paper's formula, written down in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.cases import REQUIRED, case_of, every_method
from contract.oracles import ORACLES
from torch import Tensor

from merge_plugins.plugins import registry


@every_method
def test_every_method_of_ours_has_an_oracle(name: str) -> None:
    if not registry().get(name).plugin.startswith("merge_plugins."):
        pytest.skip("a guest: its plugin tests it")
    assert name in ORACLES


def every_oracle() -> pytest.MarkDecorator:
    found = []
    for name, some in ORACLES.items():
        for parameters, oracle in some:
            for shape in ((257,), (31, 17), (5, 7, 11), (1,)):
                if parameters.get("filter_wise") and len(shape) != 2:
                    continue  # shares of rows: the oracle knows matrices
                restores = parameters.get("rescale") == "l1" or "epsilon" in parameters
                if restores and shape == (1,):
                    continue  # nothing may be left to rescale
                identifier = f"{name}{parameters}{shape}"
                found.append(pytest.param(name, parameters, oracle, shape, id=identifier))
    return pytest.mark.parametrize(("name", "parameters", "oracle", "shape"), found)


@every_oracle()
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_result_is_the_papers_in_float64(
    name: str,
    parameters: dict[str, Any],
    oracle: Callable[..., Tensor],
    shape: tuple[int, ...],
    stored: torch.dtype,
) -> None:
    case = case_of(name, **parameters)
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=generator).to(stored)
    moved = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(3)]
    experts = [expert.to(stored) for expert in moved[: case.n_experts]]
    given = parameters.get("weight", REQUIRED["weight"])
    w = torch.tensor(given if isinstance(given, tuple) else (given,) * 3, dtype=torch.float64)
    w = w[: case.n_experts].view(-1, *[1] * len(shape))
    slot = case.slot(base.float(), *(expert.float() for expert in experts))
    (merged,) = case.merge(slot)
    expected = oracle(base.double(), torch.stack(experts).double(), w)
    assert merged.dtype == torch.float32
    assert torch.allclose(merged.double(), expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", ["linear", "average_merging", "slerp", "slerp_merging"])
def test_bfloat16_is_rounded_once_at_the_end(name: str) -> None:
    parameters, oracle = ORACLES[name][0]
    case = case_of(name, **parameters)
    generator = torch.Generator().manual_seed(4)
    base, *experts = (torch.randn(40, 50, generator=generator).bfloat16() for _ in range(4))
    slot = case.slot(base, *experts)
    (merged,) = case.merge(slot)
    w = torch.tensor(parameters.get("weight", (1.0,)), dtype=torch.float64).view(-1, 1, 1)
    exact = oracle(base.double(), torch.stack(slot.experts).double(), w)
    off = (merged.bfloat16().double() - exact).abs()
    ulp = torch.exp2(torch.floor(torch.log2(exact.abs())) - 7)
    assert bool((off <= 0.501 * ulp).all())
