"""The config of a stack, where a model's own config is not as its class writes it."""

from __future__ import annotations

from typing import Any

import pytest

from merge_plugins.planning.config import with_depth

DONOR: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["a", "b"],
    "mlp_only_layers": [0],
    "per_layer_config": {"0": 1},
}
SWAPPED = {**DONOR, "layer_types": ["b", "a"], "mlp_only_layers": [1], "per_layer_config": {"1": 1}}


@pytest.mark.parametrize("strange", [3, "x", None, True, {"a": 1}, [], ["x"]])
def test_what_is_no_list_of_layers_is_the_donors(strange: Any) -> None:
    other = dict.fromkeys(DONOR, strange)
    if isinstance(strange, list):
        other["mlp_only_layers"] = None  # a list, though of no layer, is the model's own
    assert with_depth(DONOR, [(other, 1), (DONOR, 0)]) == SWAPPED


@pytest.mark.parametrize("strange", [3, "x", None, [], ["x"]])
def test_a_section_that_is_none_is_no_section(strange: Any) -> None:
    donor = {"text_config": DONOR}
    other = {**DONOR, "text_config": strange}
    assert with_depth(donor, [(other, 1), (donor, 0)]) == {"text_config": SWAPPED}
    assert with_depth({"text_config": strange}, [(other, 1)]) == {"text_config": strange}


def test_a_window_that_begins_at_a_word_is_left_to_the_class() -> None:
    config = {"num_hidden_layers": 1, "use_sliding_window": True, "max_window_layers": "x"}
    assert with_depth(config, [(config, 0)]) == config
