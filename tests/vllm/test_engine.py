"""An engine on a recipe says what an engine on the saved merge says, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Ask = Callable[..., list[list[Any]]]
MERGED = {"load_format": "merged"}


def test_a_recipe_folder_is_served_like_the_saved_merge(
    ask: Ask, dense: dict[str, list[Any]]
) -> None:
    """Also once its weights are replaced by another recipe's, by its name or its folder's."""
    good, wrecked = dense.values()
    assert good != wrecked
    reloads = ("dense/wrecked.yaml", "dense/good", "dense/wrecked")
    assert ask("dense/good", **MERGED, reloads=reloads) == [good, wrecked, good, wrecked]


def test_ranks_that_merge_their_shares_answer_together(ask: Ask) -> None:
    """A mixture of experts, whose weights vLLM fuses, on two ranks."""
    on_two = {"tensor_parallel_size": 2}
    named = {"model_loader_extra_config": {"recipe": "moe/good.yaml"}}
    assert ask("moe/base", **MERGED, **named, **on_two) == ask("moe/good-saved", **on_two)


def test_a_rank_reads_little_more_than_it_holds(ask: Ask, workplace: Path) -> None:
    """Also where whole weights are measured, which ranks share; then for a method without that."""
    linear = workplace / "wide" / "linear.yaml"
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("math", "code")]
    linear.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": "float32"}))
    on_two = {"tensor_parallel_size": 2}
    (saved,) = ask("wide/good-saved", **on_two)
    counted = {"worker_extension_cls": "reads_of_worker.CountingWorker", "asked": ["bytes_read"]}
    (*ties, after_ties), (*_, after_linear) = ask(
        "wide/good", **MERGED, **on_two, **counted, reloads=("wide/linear.yaml",)
    )
    assert ties == saved
    size = (workplace / "wide" / "base" / "model.safetensors").stat().st_size
    for ours, others in zip(after_ties, after_linear, strict=True):
        assert 0.49 < ours["distinct"] / (3 * size) < 0.60
        assert 0.49 < (others["total"] - ours["total"]) / (2 * size) < 0.55
