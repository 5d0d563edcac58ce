"""Every method, on an accelerator: the bits of the CPU, or near them as in docs/devices.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract.cases import Case, every_case, read
from torch import Tensor

from merge_plugins.engine import Merge
from merge_plugins.parallel import Place

GPU = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
pytestmark = pytest.mark.skipif(GPU is None, reason="needs a GPU")

SHAPES = {"layers.0.mlp.up_proj.weight": (1024, 1536), "norm.weight": (4099,), "bias": (301,)}
MAY_DIFFER = {"arcee_fusion", "pcb", "regmean_merging", "tsv", "iso_c", "iso_cts", "wudi"}
"""Methods that rank by exponentials or logarithms, or multiply matrices."""


@pytest.fixture(scope="session")
def family(checkpoint: Callable[..., str]) -> dict[str, str]:
    """A base and three fine-tunes with a weight of several blocks, in bfloat16."""
    generator = torch.Generator().manual_seed(0)

    def moved(weights: dict[str, Tensor], spread: float) -> dict[str, Tensor]:
        return {
            name: weight + spread * torch.randn(weight.shape, generator=generator)
            for name, weight in weights.items()
        }

    base = moved({name: torch.zeros(shape) for name, shape in SHAPES.items()}, 0.02)
    experts = {str(i): moved(base, 0.003) for i in range(3)}
    return {
        name: checkpoint({key: weight.bfloat16() for key, weight in weights.items()})
        for name, weights in {"base": base, **experts}.items()
    }


@every_case()
def test_a_merge_on_a_gpu_is_that_on_the_cpu(
    case: Case, lazily: Callable[..., Merge], caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a weight is held there, or read in parts."""
    assert GPU is not None
    device, expected = torch.empty(0, device=GPU).device, read(lazily(case))
    for room in (0, 1 << 30):
        merge = lazily(case)
        merge.places[device] = Place(device, 1 << 18, by_threads=False, room=room)
        for name, tensor in merge.tensors().items():
            found = tensor.on(device)
            assert found.device == device
            differ = (found.cpu() != expected[name]).sum()
            most = 1e-3 * found.numel() + 200 if case.method.name in MAY_DIFFER else 0
            assert differ <= most, (room, name, int(differ))
    assert "on the CPU" not in caplog.text
