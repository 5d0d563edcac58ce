"""What a plugin's method does wrong is said to be the plugin's, with weight and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merge_plugins import MergeError, Recipe, load_plugin, merged_tensors
from merge_plugins.errors import MismatchError, ParameterError, PluginError, RecipeError

Plugin = Callable[..., Path]
CALL = "return slot.experts[0].float()"
MEASURE = """

    def measure(self, weight):
        return {"most": weight.missing}
"""
PREPARE = """

    def prepare(self, sources):
        return {}[sources.seed]
"""
PREPARED = """

    def prepare(self, sources):
        return "a kernel"
"""
CHECK = """

    def __post_init__(self):
        {}["scale"]
"""
OWN = r"own \(plugin own\.py [0-9a-f]{12}\)"


@pytest.mark.parametrize(
    ("call", "body", "error", "message"),
    [
        ("return slot.experts[0][:1]", "", MismatchError, "returned [1] for w [3]"),
        ("return slot.experts[0] > 0", "", MismatchError, "returned torch.bool for w"),
        ("return slot.experts[0].long()", "", MismatchError, "returned torch.int64 for w"),
        ("return 1.0", "", MismatchError, "returned float for w"),
        ("pass", "", MismatchError, "returned NoneType for w"),
        ("return slot.experts[7]", "", PluginError, "failed on w: IndexError: "),
        ("return slot.experts[0] @ torch.ones(2)", "", PluginError, "failed on w: RuntimeError: "),
        (CALL, MEASURE, PluginError, "failed on w: AttributeError: "),
        (CALL, PREPARE, PluginError, "failed in prepare: KeyError: "),
        (CALL, PREPARED, MismatchError, ": prepare returns a kernel or None; got str"),
    ],
    ids=["shape", "bool", "int", "float", "None", "index", "torch", "measure", "prepare", "text"],
)
def test_a_fault_names_plugin_and_weight(
    call: str,
    body: str,
    error: type[MergeError],
    message: str,
    plugin_file: Plugin,
    checkpoint: Callable[..., str],
) -> None:
    load_plugin(plugin_file(call, body=body))
    models = [checkpoint({"w": torch.ones(3)})]
    tensors = merged_tensors(Recipe.from_mapping({"merge_method": "own", "models": models}))
    with pytest.raises(error, match=OWN) as caught:
        _ = tensors["w"][...]
    assert type(caught.value) is error
    assert message in str(caught.value)
    if error is PluginError:
        assert "(own.py, line " in str(caught.value)


def test_an_error_of_ours_stays_ours(plugin_file: Plugin, checkpoint: Callable[..., str]) -> None:
    load_plugin(plugin_file("return slot.base"))
    models = [checkpoint({"w": torch.ones(3)})]
    tensors = merged_tensors(Recipe.from_mapping({"merge_method": "own", "models": models}))
    with pytest.raises(RecipeError, match="w: this method needs a base model"):
        _ = tensors["w"][...]


def test_a_check_of_parameters_that_fails_in_any_way_is_a_parameter_error(
    plugin_file: Plugin, checkpoint: Callable[..., str]
) -> None:
    load_plugin(plugin_file(CALL, body=CHECK))
    models = [checkpoint({"w": torch.ones(3)})]
    with pytest.raises(ParameterError, match="own: KeyError: 'scale'"):
        merged_tensors(Recipe.from_mapping({"merge_method": "own", "models": models}))
