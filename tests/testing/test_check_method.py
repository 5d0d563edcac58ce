"""`check_method` passes a method that keeps the contract, and says which promise another breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from merge_plugins import load_plugin
from merge_plugins.errors import ParameterError
from merge_plugins.testing import check_method

Plugin = Callable[..., Path]
MEDIAN = "return self.scale * slot.stacked().median(dim=0).values"
ON_BASE = "return slot.base.float() + self.scale * slot.deltas().mean(0)"
MEASURED = """measured_by = ()

    def measure(self, weight):
        return {"most": torch.tensor(self.scale)}
"""


def test_a_method_that_keeps_its_promises_passes(plugin_file: Plugin) -> None:
    load_plugin(plugin_file(MEDIAN))
    check_method("own", copies=True, symmetric=True)
    load_plugin(plugin_file(ON_BASE, facts=", needs_base=True"))
    check_method("own", {"scale": 0.5}, copies=True, symmetric=True, zero="scale")


@pytest.mark.parametrize(
    ("call", "body", "message"),
    [
        ("return slot.experts[0].float().reshape(-1)[:1]", "", r"gives \[1\] for a weight \[\]"),
        ("return slot.experts[0].to(torch.int32)", "", "gives torch.int32 for a weight"),
        ("return 1.0", "", "gives float for a weight"),
        ("return slot.stacked().mean(0) / 0", "", "gives NaN or infinity"),
        ("return slot.experts[0].mul_(2)", "", "writes to its torch.float32 inputs"),
        ("return slot.experts[0]", "", "writes to its torch.float32 inputs, or returns one"),
        ("x = slot.stacked().mean(0); return x - x.mean() if x.numel() else x", "",
         "blocks of 1000 elements|blocks of 64 elements have other bits than the whole; its gran"),
        ("return slot.stacked().mean(0) + torch.rand(slot.shape)", "granularity = WHOLE",
         "gives other bits for the same inputs; draw from merge_plugins.ops.random"),
        ("return slot.stacked().mean(0)", MEASURED, "measured_by lacks scale: 0.0 measures other"),
        ("return slot.experts[0].float().nan_to_num()", "shows_damage = True",
         "shows_damage, but nan in model 0|shows_damage, but nan in model 1"),
    ],
    ids=["shape", "dtype", "number", "finite", "input", "result", "block", "random", "measure",
         "damage"],
)  # fmt: skip
def test_a_broken_promise_is_named(call: str, body: str, message: str, plugin_file: Plugin) -> None:
    load_plugin(plugin_file(call, body=body))
    with pytest.raises(AssertionError, match=message):
        check_method("own")


def test_claims_are_checked(plugin_file: Plugin) -> None:
    load_plugin(plugin_file("return self.scale * slot.experts[0].float()"))
    with pytest.raises(AssertionError, match=r"own\(scale=0.5\): merges copies of one model to"):
        check_method("own", {"scale": 0.5}, copies=True)
    with pytest.raises(AssertionError, match="depends on the order of the models"):
        check_method("own", symmetric=True)


def test_parameters_are_read_as_in_a_recipe() -> None:
    with pytest.raises(ParameterError, match="slerp: no parameter 'density'"):
        check_method("slerp", {"density": 1})
    with pytest.raises(ParameterError, match="slerp: t has no default"):
        check_method("slerp")
