"""Merges of sentence-transformers models, saved, mounted and mixed: what embeds beside weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from embedders import embedder
from families import word_tokenizer, write_family
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, T5Config, T5EncoderModel

from merge_plugins import Recipe, mount, save
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.lm_cocktail import compute_weights, mix_models, mix_models_with_data

TEXTS = ["1 2 3", "4", "5 6 7 8 9 10 11 12 13"]
SHAPE: Mapping[str, Any] = {
    "vocab_size": 54,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2}
FAMILIES: Mapping[str, Callable[[], Any]] = {
    "bert": lambda: BertModel(BertConfig(**SHAPE)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SHAPE)),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=54, initializer_factor=0.3, **T5)),
}
Family = Callable[..., list[str]]


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """Write a model of a family and two fine-tunes of it: embedders, unless they are to be raw."""

    def write(kind: str = "bert", raw: bool = False, **given: Any) -> list[str]:
        torch.manual_seed(0)
        words = ["<s>", "<pad>", "</s>", "?", *map(str, range(50))]
        tokenizer = word_tokenizer(words, unknown="?", eos_token="</s>", pad_token="<pad>")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        names = [f"{kind}-{name}" for name in "abc"]
        written = write_family(
            FAMILIES[kind](), tmp_path, names, spread=0.1, tokenizer=tokenizer
        ).values()
        return [*written] if raw else [embedder(folder, **given) for folder in written]

    return write


def embeddings(model: Any, texts: list[str] = TEXTS, **given: Any) -> torch.Tensor:
    if not isinstance(model, SentenceTransformer):
        model = SentenceTransformer(str(model), device="cpu", **given)
    found: torch.Tensor = model.encode(texts, convert_to_tensor=True)
    return found


def by_hand(folders: list[str], weights: list[float]) -> SentenceTransformer:
    """Average whole models, modules behind the transformer included, in float32."""
    models = [SentenceTransformer(folder, device="cpu") for folder in folders]
    states = [model.float().state_dict() for model in models]
    mixed = {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
    models[0].load_state_dict(mixed)
    return models[0]


def linear(models: list[str], weights: list[float], **keys: Any) -> Recipe:
    entries = [
        {"model": model, "parameters": {"weight": weight}}
        for model, weight in zip(models, weights, strict=True)
    ]
    return Recipe.from_mapping(
        {
            "merge_method": "linear",
            "models": entries,
            "parameters": {"normalize": False},
            "out_dtype": "float32",
            **keys,
        }
    )


WEIGHTS = [0.5, 0.3, 0.2]


@pytest.mark.parametrize("pooling", [("mean",), ("mean", "normalize"), ("cls", "max")])
def test_a_mix_is_written_with_the_pooling_of_its_models(
    family: Family, pooling: tuple[str, ...], tmp_path: Path
) -> None:
    folders = family(pooling=pooling)
    mix_models(folders, "encoder", WEIGHTS, tmp_path / "mix")
    expected = embeddings(by_hand(folders, WEIGHTS))
    assert torch.allclose(embeddings(tmp_path / "mix"), expected, atol=1e-5)


def test_a_mix_of_models_that_do_not_say_it_needs_a_pooling(family: Family, tmp_path: Path) -> None:
    folders = family(raw=True)
    with pytest.raises(RecipeError, match=r"Write pooling: .* pooling=\[\"cls\", \"normalize\"\]"):
        mix_models(folders, "encoder", WEIGHTS, tmp_path / "mix")
    assert not (tmp_path / "mix").exists()
    model = mix_models(folders, "encoder", WEIGHTS, tmp_path / "mix", pooling="cls+normalize")
    inputs = SentenceTransformer(str(tmp_path / "mix"), device="cpu").tokenizer(
        TEXTS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        first = model(**inputs).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(first, dim=-1)
    assert torch.allclose(embeddings(tmp_path / "mix"), expected, atol=1e-5)


QUERIES = [
    {"query": "1 2", "pos": ["3 4"], "neg": ["5", "6 7"]},
    {"query": "30 31", "pos": ["30"], "neg": ["40", "41 42"]},
]


def test_a_mix_with_data_weighs_models_by_their_own_pooling(family: Family) -> None:
    raw = family(raw=True)[:2]
    given: dict[str, Any] = {"temperature": 5.0, "neg_number": 2}
    with pytest.raises(RecipeError, match="Write pooling:"):
        mix_models_with_data(raw, "encoder", QUERIES, **given)
    by = {mode: compute_weights(raw, "encoder", QUERIES, pooling=mode, **given) for mode in MODES}
    assert abs(by["cls"][0] - by["mean"][0]) > 0.01
    folders = [embedder(folder, ("mean", "normalize")) for folder in raw]
    assert compute_weights(folders, "encoder", QUERIES, **given) == by["mean"]
    with pytest.raises(MismatchError, match="Delete pooling:"):
        compute_weights(folders, "encoder", QUERIES, pooling="max", **given)


MODES = ("cls", "mean")


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_base_that_says_nothing_takes_the_limits_of_the_experts_along(
    family: Family, kind: str, tmp_path: Path
) -> None:
    base, *experts = family(kind, raw=True)
    settings = {"prompts": {"query": "7 7: "}, "default_prompt_name": "query"}
    for expert in experts:
        embedder(expert, ("cls",), settings=settings)
        config = json.loads(Path(expert, "tokenizer_config.json").read_text())
        Path(expert, "tokenizer_config.json").write_text(
            json.dumps({**config, "model_max_length": 6})
        )
    recipe = Recipe.from_mapping(
        {"merge_method": "task_arithmetic", "base_model": base, "models": experts}
    )
    for write in (save, mount):
        folder = write(recipe, tmp_path / write.__name__)
        model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        assert model.max_seq_length == 6
        assert model.prompts["query"] == "7 7: "
        assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert torch.equal(
        embeddings(tmp_path / "save"), embeddings(tmp_path / "mount", trust_remote_code=True)
    )
