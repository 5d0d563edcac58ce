"""Every method, on an accelerator: the bits of the CPU, or near them as in docs/devices.md."""

from __future__ import annotations

import pytest
import torch
from contract.cases import Case, every_case

from merge_plugins.parallel import Place
from merge_plugins.testing.family import Family, read

GPU = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
pytestmark = pytest.mark.skipif(GPU is None, reason="needs a GPU")

SHAPES = {"layers.0.mlp.up_proj.weight": (1024, 1536), "norm.weight": (4099,), "bias": (301,)}
MAY_DIFFER = {"arcee_fusion", "pcb", "regmean_merging", "tsv", "iso_c", "iso_cts", "wudi"}
"""Methods that rank by exponentials or logarithms, or multiply matrices."""


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A base and three fine-tunes with a weight of several blocks, in bfloat16."""
    return Family(tmp_path_factory.mktemp("family"), SHAPES, base=0.02, step=0.003)


@every_case()
def test_a_merge_on_a_gpu_is_that_on_the_cpu(
    case: Case, family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a weight is held there, or read in parts."""
    assert GPU is not None
    device, expected = torch.empty(0, device=GPU).device, read(family.planned(case))
    for room in (0, 1 << 30):
        merge = family.planned(case)
        merge.places[device] = Place(device, 1 << 18, by_threads=False, room=room)
        for name, tensor in merge.tensors().items():
            found = tensor.on(device)
            assert found.device == device
            differ = (found.cpu() != expected[name]).sum()
            most = 1e-3 * found.numel() + 200 if case.method.name in MAY_DIFFER else 0
            assert differ <= most, (room, name, int(differ))
    assert "on the CPU" not in caplog.text
