"""A live engine that is swapped answers as a fresh one does, or the swap is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_adapters.vllm import engine_options
from merge_plugins import Recipe, digest

Steps = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def swappable() -> dict[str, Any]:
    """Options of an engine whose weights can be replaced."""
    return {"load_format": "merged", **engine_options()}


def test_a_swapped_engine_answers_as_a_fresh_one(
    steps: Steps, swappable: dict[str, Any], dense: dict[str, list[Any]], workplace: Path
) -> None:
    """To the last bit, to prompts that were cached; and stays as it is where a merge is refused.

    Another model's files of the same content are no other tokenizer; another end of a text is.
    """
    folder = workplace / "dense"
    one = {"sources": [{"model": "base", "layer_range": [0, 2]}]}
    stack = {"merge_method": "passthrough", "slices": [one, one]}
    (folder / "deep.yaml").write_text(yaml.safe_dump(stack))
    (folder / "gone.yaml").write_text((folder / "good.yaml").read_text().replace("math", "gone"))
    elsewhere = shutil.copytree(folder / "base", folder / "elsewhere")
    (elsewhere / "generation_config.json").write_text('{"eos_token_id": 5}')
    for name, model in (("alone", "code"), ("ends", "elsewhere")):
        (folder / f"{name}.yaml").write_text(f"merge_method: passthrough\nmodels: [{model}]\n")
    names = ("wrecked", "deep", "gone", "ends", "alone", "good")
    first, other, deep, gone, ends, alone, back, by_path = steps(
        "dense/good",
        "",
        *(f"swap dense/{name}.yaml" for name in names),
        "path dense/wrecked.yaml",
        **swappable,
    )
    assert first == {"error": None, "answers": dense["good"], "weights": None}
    name = digest(Recipe.load(folder / "wrecked.yaml"))
    assert other == {"error": None, "answers": dense["wrecked"], "weights": name}
    assert "SwapError: the merge has another num_hidden_layers than" in deep.pop("error")
    assert "dense/gone" in gone.pop("error")
    assert "SwapError: the merge has another generation config than" in ends.pop("error")
    assert alone["error"] is None
    assert alone["weights"] == digest(Recipe.load(folder / "alone.yaml"))
    assert alone["answers"] != dense["wrecked"]
    assert deep == gone == ends == {"answers": dense["wrecked"], "weights": name}
    assert back["answers"] == dense["good"]
    assert by_path == other


@pytest.mark.parametrize("family", ["tied", "experts"])
def test_a_reload_that_vllm_does_wrongly_is_caught(
    family: str, steps: Steps, swappable: dict[str, Any]
) -> None:
    """Its CPU build keeps packed copies of tied embeddings and of experts: seen, and remembered."""
    known = set(verdicts())
    swap = f"swap {family}/wrecked.yaml"
    first, refused, again = steps(f"{family}/good", "", swap, swap, **swappable)
    assert first["error"] is None
    for found in (refused, again):
        assert "SwapError: vLLM 0" in found["error"]
        assert "Restart the engine with the other recipe" in found["error"]
    (file,) = set(verdicts()) - known
    verdict = json.loads(file.read_text())["verdict"]
    assert verdict["noise"] < 1e-5 < 5e-4 < verdict["swapped"] < verdict["apart"]


def verdicts() -> list[Path]:
    return [*Path(os.environ["MERGE_PLUGINS_CACHE"], "swaps").glob("*.json")]
