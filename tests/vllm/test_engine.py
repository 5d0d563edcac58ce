"""An engine on a recipe says what an engine on the saved merge says, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Ask = Callable[..., list[list[Any]]]
MERGED = {"load_format": "merged"}


def test_a_recipe_folder_is_served_like_the_saved_merge(ask: Ask) -> None:
    """Also once its weights are replaced by another recipe's, by its name or its folder's."""
    good, wrecked = ask("dense/good-saved", reloads=("dense/wrecked-saved",))
    assert good != wrecked
    reloads = ("dense/wrecked.yaml", "dense/good", "dense/wrecked")
    assert ask("dense/good", **MERGED, reloads=reloads) == [good, wrecked, good, wrecked]


def test_ranks_that_merge_their_shares_answer_together(ask: Ask) -> None:
    """A mixture of experts, whose weights vLLM fuses, on two ranks."""
    on_two = {"tensor_parallel_size": 2}
    named = {"model_loader_extra_config": {"recipe": "moe/good.yaml"}}
    assert ask("moe/base", **MERGED, **named, **on_two) == ask("moe/good-saved", **on_two)
