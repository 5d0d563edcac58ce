"""Tiny models, the real MiniLM's experts, and pairs of sentences in place of MTEB's STS12."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from embedders import embedder
from families import word_tokenizer, write_family
from graded_pairs import write_sts12
from transformers import BertConfig, BertForSequenceClassification, BertModel

if os.environ.get("REQUIRE_MTEB"):  # what is missing is an error, not a reason to skip
    import mteb.mocks  # noqa: F401

Write = Callable[..., str]


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


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write merge.yaml, a mix of two models; return its path."""

    def written(models: list[str], weight: float) -> str:
        entries = [
            {"model": model, "parameters": {"weight": w}}
            for model, w in zip(models, (weight, 1 - weight), strict=True)
        ]
        file = tmp_path / "merge.yaml"
        file.write_text(json.dumps({"merge_method": "linear", "models": entries}))
        return str(file)

    return written


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where STS12 is ours."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    write_sts12(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
