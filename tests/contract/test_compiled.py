"""What is recorded of a kernel, to be compiled, is what the kernel does: the same bits.

Here the recorded operators are called one by one. ``COMPILE_EVERY=1`` compiles each, which takes a
C++ compiler and some minutes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import torch
from contract.cases import Case, every_case, near, weights

from merge_plugins.api import ELEMENT, ROW, Prepares, Region, Slot, granularity_of
from merge_plugins.engine.compiled import Compiled, Writer, compiled, run, same_bits
from merge_plugins.engine.recording import RecordingError

SHAPE = (40, 320)
DTYPES = (torch.bfloat16, torch.float32)
NEED_DATA = {
    *("della", "della_linear", "della_norank", "della_layer_norm", "dare_della", "ties_row"),
    "nuslerp",
}
"""Methods that in some settings merge without compiled code: they sort rows by numpy, or branch on
what is in a block."""


def by_blocks(case: Case) -> bool:
    kernel = case.kernel()  # what `prepare` returns is another method's
    return granularity_of(kernel) in (ELEMENT, ROW) and not isinstance(kernel, Prepares)


def blocks(case: Case, dtype: torch.dtype) -> Iterator[tuple[object, Slot]]:
    """The kernel of a case, and parts of a weight that a merge would be cut into."""
    base, *_ = weights(1, SHAPE)
    models = [model.to(dtype) for model in (base, *near(base, 3))]
    slot, kernel = case.slot(*models), case.kernel()
    measured = case.measured(slot)
    whole = dataclasses.replace(slot, measured=measured).weight()
    for first, last in ((0, 20), (21, 40)):
        region = Region(SHAPE, ((first, last), (0, SHAPE[1])))
        part = whole.part(region)
        yield kernel, dataclasses.replace(part, measured=measured)


@every_case(by_blocks)
def test_what_is_recorded_has_the_bits_of_the_kernel(case: Case) -> None:
    for dtype in DTYPES:
        for kernel, slot in blocks(case, dtype):
            wanted = kernel(slot).to(dtype)  # type: ignore[operator]
            merged = torch.empty_like(wanted)
            code = Compiled(kernel, dtype, ("tests",))  # type: ignore[arg-type]
            try:
                recorded = code.record(slot, merged)
            except RecordingError:
                if case.method.name in NEED_DATA:
                    continue
                raise
            function = Writer(recorded.program).module()
            if os.environ.get("COMPILE_EVERY"):
                function = compiled(recorded.program)  # type: ignore[assignment]
            total = run(function, recorded)
            assert total.isfinite()
            if not recorded.alphas:
                assert same_bits(merged, wanted), (dtype, slot.region)


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
