"""What is recorded of a kernel, to be compiled, is what the kernel does: the same bits.

Here the recorded operators are called one by one. ``COMPILE_EVERY=1`` compiles each, which takes a
C++ compiler and some minutes.
"""

from __future__ import annotations

import os

import torch
from contract.cases import Case, every_case

from merge_plugins import Slot
from merge_plugins.engine.compiled import Compiled, Writer, compiled, run, same_bits
from merge_plugins.testing import weights
from merge_plugins.testing.engine import SHAPE, blocks, is_compiled, recorded_has_the_bits

DTYPES = (torch.bfloat16, torch.float32)
NEED_DATA = {
    *("della", "della_linear", "della_norank", "della_layer_norm", "dare_della", "ties_row"),
    "nuslerp",
}
"""Methods that in some settings merge without compiled code: they sort rows by numpy, or branch on
what is in a block."""


@every_case(is_compiled)
def test_what_is_recorded_has_the_bits_of_the_kernel(case: Case) -> None:
    for dtype in DTYPES:
        code = compiled if os.environ.get("COMPILE_EVERY") else None
        assert recorded_has_the_bits(case, dtype, code) or case.method.name in NEED_DATA


def test_blocks_of_one_weight_have_one_program() -> None:
    for name in ("ties", "dare_ties", "task_arithmetic"):
        case = next(c for c in _cases() if c.method.name == name)
        programs = set()
        for kernel, slot in blocks(case, torch.bfloat16):
            out = torch.empty(slot.shape, dtype=torch.bfloat16)
            programs.add(Compiled(kernel, torch.bfloat16, ("tests",)).record(slot, out).program)  # type: ignore[arg-type]
        assert len(programs) == 1, name


def _cases() -> list[Case]:
    return [param.values[0] for param in every_case().args[1]]


def test_what_is_written_to_out_may_be_computed_from_a_number() -> None:
    def kernel(slot: Slot) -> torch.Tensor:
        total = slot.experts[0].float()
        torch.mul(total, 0.3, out=total)
        torch.add(total, slot.base, out=total)
        return total

    base, *experts = weights(2, SHAPE)
    slot = Slot("w", base.bfloat16(), (experts[0].bfloat16(),))
    merged = torch.empty(SHAPE, dtype=torch.bfloat16)
    recorded = Compiled(kernel, torch.bfloat16, ("tests",)).record(slot, merged)
    run(Writer(recorded.program).module(), recorded)
    assert same_bits(merged, kernel(slot).bfloat16())
