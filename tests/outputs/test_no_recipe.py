"""What is no recipe is refused by every function that takes one, with what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import merge_plugins
from merge_plugins import MergeError

GIVEN: list[tuple[Any, str]] = [
    ("merge.yaml", r"got 'merge.yaml': give Recipe.load\('merge.yaml'\)"),
    (Path("merge.yaml"), r"give Recipe.load\('merge.yaml'\)"),
    ({"merge_method": "linear"}, r"got a dict: give Recipe.from_mapping\(it\)"),
    (None, "got a NoneType: give what Recipe.load returns"),
]
TAKERS: dict[str, Callable[[Any, Path], object]] = {
    "digest": lambda given, _: merge_plugins.digest(given),
    "load_classifiers": lambda given, _: merge_plugins.load_classifiers(given),
    "load_embedder": lambda given, _: merge_plugins.load_embedder(given),
    "load_merged": lambda given, _: merge_plugins.load_merged(given, trust_remote_code=True),
    "load_reranker": lambda given, _: merge_plugins.load_reranker(given),
    "merged_tensors": lambda given, _: merge_plugins.merged_tensors(given),
    "mount": lambda given, folder: merge_plugins.mount(given, folder / "mounted"),
    "open_merge": lambda given, _: merge_plugins.open_merge(given),
    "save": lambda given, folder: merge_plugins.save(given, folder / "saved"),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(("given", "message"), GIVEN, ids=["text", "path", "dict", "none"])
def test_what_is_no_recipe_is_refused_with_what_to_give(
    taker: str, given: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match=message):
        TAKERS[taker](given, tmp_path)
    assert not list(tmp_path.iterdir())
