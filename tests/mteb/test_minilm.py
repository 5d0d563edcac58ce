"""The real MiniLM and a noised copy of it, mixed: what MTEB makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from skilled_embedders import minilm

pytest.importorskip("mteb.mocks")

from harness_adapters.mteb import Evaluator
from harness_adapters.mteb.__main__ import main
from merge_plugins import Recipe
from merge_plugins.identity import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # what MTEB warns of is not ours to mend


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The real one, and a copy with noise of 0.8 times each weight's spread."""
    model: Any = SentenceTransformer(minilm(), device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.8 * weight.std() * torch.randn_like(weight))
    folder = str(tmp_path_factory.mktemp("noised") / "model")
    model.save_pretrained(folder, create_model_card=False)
    return [minilm(), folder]


def test_the_same_recipe_name_edited_gives_the_new_score(
    both: list[str], write: Any, workplace: Path
) -> None:
    scores = []
    for weight in (0.95, 0.0, 0.95):
        file = write(both, weight)
        assert main(["run", "-m", file, "-t", "STS12", "--output-folder", "out"]) == 0
        revision = digest(Recipe.load(file))
        (filed,) = Path("out").rglob(f"merged__merge/{revision}/STS12.json")
        scores.append(json.loads(filed.read_text())["scores"]["test"][0]["main_score"])
    assert scores[0] > 0.8
    assert scores[1] < 0.5
    assert scores[2] == scores[0]
    assert len([*Path("out").rglob("STS12.json")]) == 2


def test_sts_rises_with_the_weight_of_the_good_one(
    both: list[str], write: Any, workplace: Path
) -> None:
    with Evaluator(["STS12"], device="cpu") as evaluator:
        recipes = [Recipe.load(write(both, share)) for share in (0.0, 0.25, 0.5, 0.75)]
        scores = [evaluator.score(recipe)["STS12"].value for recipe in recipes]
    assert scores == sorted({*scores})
    assert scores[-1] - scores[0] > 0.4
