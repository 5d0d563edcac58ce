"""MTEB evaluates merges by recipe; an edited recipe is another revision. Needs MTEB itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mteb.mocks")  # mteb alone would be the folder of this file

import mteb
from embedders import embedder
from families import word_tokenizer, write_family
from mteb.mocks.mock_tasks import MockRerankingTask, MockSTSTask
from transformers import BertConfig, BertForSequenceClassification, BertModel

from harness_adapters.mteb import main, register
from merge_plugins.identity import digest
from merge_plugins.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # what MTEB warns of is not ours to mend


@pytest.fixture
def models(tmp_path: Path) -> dict[str, list[str]]:
    """Two embedders and two rerankers."""
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "?", "This", "is", "a", "test", "sentence", "another", "query"]
    tokenizer = word_tokenizer(words, unknown="?", eos_token="</s>", pad_token="<pad>")
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=12, num_attention_heads=2, num_labels=1, **size)
    found = {}
    for model_class in (BertModel, BertForSequenceClassification):
        names = [f"{model_class.__name__}-{i}" for i in range(2)]
        folders = write_family(
            model_class(config), tmp_path, names, spread=0.3, tokenizer=tokenizer
        )
        found[model_class.__name__] = [*folders.values()]
    return {
        "embedder": [embedder(folder) for folder in found["BertModel"]],
        "reranker": found["BertForSequenceClassification"],
    }


def write(file: Path, models: list[str], weight: float) -> str:
    entries = [
        {"model": model, "parameters": {"weight": w}}
        for model, w in zip(models, (weight, 1 - weight), strict=True)
    ]
    file.write_text(json.dumps({"merge_method": "linear", "models": entries}))
    return str(file)


@pytest.mark.parametrize(
    ("kind", "task"), [("embedder", MockSTSTask), ("reranker", MockRerankingTask)]
)
def test_an_edited_recipe_is_evaluated_anew(
    kind: str, task: Any, models: dict[str, list[str]], tmp_path: Path
) -> None:
    cache, revisions = mteb.ResultCache(tmp_path / "cache"), []
    for weight in (0.0, 1.0):
        file = write(tmp_path / "merge.yaml", models[kind], weight)
        name = register(file)
        assert name == "merged/merge"
        meta = mteb.get_model_meta(name)
        assert meta.revision == digest(Recipe.load(file))
        found = mteb.evaluate(meta, [task()], cache=cache)
        assert found.model_revision == meta.revision
        assert len(found.task_results) == 1
        revisions.append(meta.revision)
    filed = {file.parent.name for file in (tmp_path / "cache").rglob("Mock*.json")}
    assert filed == {*revisions}
    assert len(filed) == 2


def test_a_recipe_that_is_wrong_stops_before_mteb(
    models: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = models["embedder"]
    embedder(two, ("cls", "normalize"))
    assert main(["run", "-m", f"method=average_merging,models={one}+{two}", "-t", "STS12"]) == 1
    assert "embed differently" in capsys.readouterr().err


def test_another_model_is_left_to_mteb() -> None:
    assert register("intfloat/multilingual-e5-small") == "intfloat/multilingual-e5-small"
