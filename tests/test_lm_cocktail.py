"""LM-Cocktail's functions and the method of that name, on tiny models of every type."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import word_tokenizer, write_family
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from merge_plugins import Recipe, load_merged, save
from merge_plugins.api import Pooling
from merge_plugins.calibration.losses import ExampleLoss, shares
from merge_plugins.errors import MergeError, MismatchError, ParameterError, RecipeError
from merge_plugins.lm_cocktail import (
    compute_weights,
    mix_models,
    mix_models_by_layers,
    mix_models_with_data,
)
from merge_plugins.recipe.data import example

SMALL: dict[str, Any] = {
    "vocab_size": 54,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
AUTO = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModel,
    "reranker": AutoModelForSequenceClassification,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
DIALOGUES = [
    {"input": "1 2 3", "output": "4 5"},
    {"input": "6", "output": "7 8 9 10"},
    {"input": "11 12", "output": "13"},
]
RETRIEVAL = [
    {"query": "1 2", "pos": ["3 4"], "neg": ["5", "6 7", "8 9 10"]},
    {"query": "2 3 4", "pos": ["5"], "neg": ["1", "2 2", "9 9 9 9"]},
    {"query": "30 31", "pos": ["30", "31"], "neg": ["40", "41 42", "43"]},
]
POOLING: dict[str, list[str]] = {"encoder": ["cls", "normalize"]}
"""What LM-Cocktail's encoders do, and these without modules.json do not say."""
DATA = {
    "decoder": DIALOGUES,
    "encoder": RETRIEVAL,
    "reranker": RETRIEVAL,
    "encoder-decoder": DIALOGUES,
}


def new(model_type: str) -> PreTrainedModel:
    if model_type == "decoder":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SMALL))
    if model_type == "encoder":
        return BertModel(BertConfig(**SMALL))
    if model_type == "reranker":
        return RobertaForSequenceClassification(RobertaConfig(num_labels=1, **SMALL))
    shape = {"vocab_size": 54, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(num_layers=2, decoder_start_token_id=0, initializer_factor=0.3, **shape)
    )


def tokenizer_of(model_type: str) -> PreTrainedTokenizerFast:
    words = ["<s>", "<pad>", "</s>", "?", *map(str, range(50))]
    if model_type == "decoder":
        return word_tokenizer(words, unknown="?", eos_token="</s>")
    found = word_tokenizer(words, unknown="?", eos_token="</s>", pad_token="<pad>")
    special = [("<s>", 0), ("</s>", 2)]
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=special
    )
    return found


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A model of each type and two fine-tunes of it, in bfloat16; the decoder cannot pad."""
    root, found = tmp_path_factory.mktemp("families"), {}
    for model_type in AUTO:
        torch.manual_seed(0)
        model, tokenizer = new(model_type).bfloat16(), tokenizer_of(model_type)
        names = [f"{model_type}-{name}" for name in "abc"]
        written = write_family(model, root, names, spread=0.1, tokenizer=tokenizer)
        found[model_type] = [*written.values()]
    return found


def mixed_by_hand(family: list[str], auto: Any, weights: list[float]) -> dict[str, Tensor]:
    """Sum whole state dicts in float32, as the original does."""
    loaded = [auto.from_pretrained(folder, dtype=torch.float32).state_dict() for folder in family]
    return {
        name: sum(w * one[name] for w, one in zip(weights, loaded, strict=True))  # type: ignore[misc]
        for name in loaded[0]
        if loaded[0][name].is_floating_point()
    }


def same(model: torch.nn.Module, expected: Mapping[str, Tensor]) -> bool:
    found = model.state_dict()
    return expected.keys() <= found.keys() and all(
        found[name].dtype == wanted.dtype and torch.allclose(found[name], wanted, atol=1e-6)
        for name, wanted in expected.items()
    )


every_type = pytest.mark.parametrize("model_type", list(AUTO))


@every_type
@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [1.2, -0.2, 0.0]])
def test_a_mix_is_the_weighted_sum_of_the_state_dicts(
    families: dict[str, list[str]], model_type: str, weights: list[float]
) -> None:
    family = families[model_type]
    model = mix_models(family, model_type, weights)
    assert same(model, mixed_by_hand(family, AUTO[model_type], weights))
    assert not model.training
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


def test_a_mix_by_layers_is_the_same(families: dict[str, list[str]]) -> None:
    family = families["reranker"]  # the original's fails on rerankers
    model = mix_models_by_layers(family, "reranker", [0.5, 0.3, 0.2])
    assert same(model, mix_models(family, "reranker", [0.5, 0.3, 0.2]).state_dict())


def test_a_mix_has_the_dtype_asked_for_and_is_rounded_once(families: dict[str, list[str]]) -> None:
    family = families["decoder"]
    model = mix_models(family, "decoder", [0.5, 0.3, 0.2], dtype=torch.bfloat16)
    exact = mix_models(family, "decoder", [0.5, 0.3, 0.2])
    assert model.dtype == torch.bfloat16
    assert same(model, {n: w.bfloat16() for n, w in exact.state_dict().items()})


@every_type
def test_what_is_written_is_the_live_model(
    families: dict[str, list[str]], model_type: str, tmp_path: Path
) -> None:
    weights, folder = [0.7, 0.3], tmp_path / "mix"
    pooling = POOLING.get(model_type)
    model = mix_models(families[model_type][:2], model_type, weights, folder, pooling=pooling)
    written = AUTO[model_type].from_pretrained(folder)
    assert written.dtype == torch.float32
    assert same(written, model.state_dict())
    assert written.config.architectures == model.config.architectures
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == tokenizer_of(model_type).get_vocab()
    assert (folder / "modules.json").exists() == (model_type == "encoder")
    recipe = Recipe.load(folder)
    assert [model.parameters["weight"].as_yaml() for model in recipe.models] == weights


def test_an_encoder_is_written_as_a_sentence_transformers_model(
    families: dict[str, list[str]], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"pooling": POOLING["encoder"]}
    mix_models(families["encoder"], "encoder", [0.5, 0.3, 0.2], tmp_path / "mix", **given)
    steps = json.loads((tmp_path / "mix" / "modules.json").read_text())
    kinds = [step["type"].rpartition(".")[2] for step in steps]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    assert [step["idx"] for step in steps] == [0, 1, 2]
    pooling = json.loads((tmp_path / "mix" / steps[1]["path"] / "config.json").read_text())
    assert pooling.pop("word_embedding_dimension") == SMALL["hidden_size"]
    assert [name for name, is_used in pooling.items() if is_used] == ["pooling_mode_cls_token"]


def test_a_mix_of_the_originals_example_has_its_tensors(
    shared_fixtures: Path, tmp_path: Path
) -> None:
    root = shared_fixtures / "seeds"
    (case,) = (c for c in json.loads((root / "cases.json").read_text()) if c["case"] == "cocktail")
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    folders = []
    for file in (case["base"], *case["experts"]):
        folders.append(tmp_path / Path(file).stem)
        config.save_pretrained(folders[-1])
        save_file(load_file(root / file), folders[-1] / "model.safetensors", {"format": "pt"})
    model = mix_models(folders, "decoder", case["weights"])
    expected = load_file(root / case["output"])
    assert same(model, expected)
    assert model.state_dict().keys() - expected.keys() <= {"lm_head.weight"}  # tied


def losses(family: list[str], model_type: Any, **given: Any) -> list[float]:
    pooling = Pooling(tuple(POOLING["encoder"])) if model_type == "encoder" else None
    loss = ExampleLoss(model_type, pooling=pooling, **given)
    examples = [example(row, "") for row in DATA[model_type]]
    auto, tokenizer = AUTO[model_type], AutoTokenizer.from_pretrained(family[0])
    return [
        loss(auto.from_pretrained(folder, dtype=torch.float32), tokenizer, examples)
        for folder in family
    ]


@every_type
def test_weights_are_found_on_examples(families: dict[str, list[str]], model_type: str) -> None:
    family = families[model_type]
    how: dict[str, Any] = {"seed": 3, "pooling": POOLING.get(model_type)}
    found = compute_weights(family, model_type, DATA[model_type], 0.5, 2, 64, 2, **how)
    alone = losses(family, model_type, batch_size=2, max_input_length=64, neg_number=2, seed=3)
    assert found == pytest.approx(shares(alone, 0.5), rel=1e-6)
    assert max(found) - min(found) > 0.01  # they do differ


def test_the_defaults_are_the_originals(families: dict[str, list[str]]) -> None:
    family = families["decoder"]
    expected = shares(losses(family, "decoder", batch_size=2, max_input_length=2048), 5.0)
    assert compute_weights(family, "decoder", DIALOGUES) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(RecipeError, match="has 3 of the 7 negatives"):
        compute_weights(families["encoder"], "encoder", RETRIEVAL)


def test_a_mix_with_data_is_the_mix_of_the_weights_found(
    families: dict[str, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = families["encoder"]
    given: dict[str, Any] = {"temperature": 0.5, "neg_number": 2, "seed": 1, "pooling": "mean"}
    with caplog.at_level(logging.INFO, "merge_plugins"):
        model = mix_models_with_data(
            family, "encoder", RETRIEVAL, output_path=tmp_path / "mix", **given
        )
    messages = [*caplog.messages]  # what comes after is logged too if a harness set the level
    weights = compute_weights(family, "encoder", RETRIEVAL, **given)
    assert same(model, mixed_by_hand(family, AutoModel, weights))
    recipe = Recipe.load(tmp_path / "mix")
    assert [model.parameters["weight"].as_yaml() for model in recipe.models] == weights
    for folder, weight in zip(family, weights, strict=True):
        (said,) = (m for m in messages if m.startswith(f"{folder}: loss"))
        assert said.endswith(f"weight {weight:.4f}")


def test_negatives_depend_on_the_seed_alone(families: dict[str, list[str]]) -> None:
    def weights(seed: int) -> tuple[float, ...]:
        given = {"temperature": 0.1, "neg_number": 1, "seed": seed, "pooling": "cls"}
        return tuple(compute_weights(families["encoder"][:2], "encoder", RETRIEVAL, **given))

    assert weights(0) == weights(0) != weights(1)


def test_a_mix_may_hold_another_merge(families: dict[str, list[str]]) -> None:
    """The original's two steps: weigh peers on examples, then mix the result with one's own."""
    first, second, own = families["decoder"]
    peers = {
        "merge_method": "linear",
        "models": [
            {"model": first, "parameters": {"weight": 0.25}},
            {"model": second, "parameters": {"weight": 0.75}},
        ],
        "out_dtype": "float32",
    }
    expected = mixed_by_hand([first, second, own], AutoModelForCausalLM, [0.15, 0.45, 0.4])
    for inner in (peers, Recipe.from_mapping(peers)):
        assert same(mix_models([inner, own], "decoder", [0.6, 0.4]), expected)


def cocktail(
    family: list[str],
    rows: list[dict[str, Any]],
    file: Path,
    pooling: list[str] | None = None,
    **given: Any,
) -> Recipe:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.from_mapping(
        {
            "merge_method": "cocktail",
            "models": family,
            "parameters": given,
            "data": str(file),
            "out_dtype": "float32",
            "pooling": pooling,
        }
    )


@every_type
def test_the_method_is_the_function(
    families: dict[str, list[str]], model_type: str, tmp_path: Path
) -> None:
    family, rows = families[model_type], DATA[model_type]
    given: dict[str, Any] = {"temperature": 0.5, "neg_number": 2}
    given["pooling"] = POOLING.get(model_type)
    recipe = cocktail(family, rows, tmp_path / "x.jsonl", model_type=model_type, **given)
    model = load_merged(recipe, AUTO[model_type])
    function = mix_models_with_data(family, model_type, rows, **given)
    assert same(model, function.state_dict())


def test_the_weights_found_are_told_with_the_merge(
    families: dict[str, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = families["decoder"]
    recipe = cocktail(family, DIALOGUES, tmp_path / "x.jsonl", temperature=0.5)
    weights = compute_weights(family, "decoder", DIALOGUES, 0.5)
    with caplog.at_level(logging.INFO, "merge_plugins"):
        settled: Any = load_merged(recipe).merge_settled
    assert f"weight {weights[0]:.4f}" in caplog.text
    card = (save(recipe, tmp_path / "saved") / "README.md").read_text()
    told = yaml.safe_load(card.rpartition("```yaml\n")[2].removesuffix("```\n"))
    for found in (settled, told):
        assert found["merge_method"] == "linear"
        assert found["parameters"]["normalize"] is False
        assert found["parameters"]["weight"] == pytest.approx(weights, rel=1e-6)


def test_a_merge_that_settles_nothing_tells_nothing(
    families: dict[str, list[str]], tmp_path: Path
) -> None:
    recipe = Recipe.from_mapping({"merge_method": "average_merging", "models": families["decoder"]})
    assert load_merged(recipe).merge_settled == {}
    assert "came down to" not in (save(recipe, tmp_path / "saved") / "README.md").read_text()


def test_the_method_compares_models_on_the_same_examples(
    families: dict[str, list[str]], tmp_path: Path
) -> None:
    recipe = cocktail(families["decoder"], DIALOGUES, tmp_path / "x.jsonl")
    other = cocktail(families["decoder"], DIALOGUES[:2], tmp_path / "y.jsonl")
    first, *others = recipe.models
    models = (
        dataclasses.replace(first, data=other.data),
        *(dataclasses.replace(model, data=recipe.data) for model in others),
    )
    slices = (dataclasses.replace(recipe.slices[0], models=models),)
    mixed = dataclasses.replace(recipe, data=None, slices=slices)
    with pytest.raises(RecipeError, match="on the same examples; move data:"):
        load_merged(mixed)


def test_the_method_needs_data(families: dict[str, list[str]]) -> None:
    recipe = Recipe.from_mapping({"merge_method": "cocktail", "models": families["decoder"]})
    with pytest.raises(RecipeError, match="add data:"):
        load_merged(recipe)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 0}, "temperature is a number above 0; got 0"),
        ({"temperature": -1.0}, "temperature is a number above 0"),
        ({"model_type": "decodr"}, "decoder"),
        ({"neg_number": 0}, "neg_number 1 or more; got 0"),
    ],
)
def test_parameters_out_of_range_are_refused(
    families: dict[str, list[str]], tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        load_merged(cocktail(families["decoder"], DIALOGUES, tmp_path / "x.jsonl", **given))
    with pytest.raises(ParameterError, match=said):
        compute_weights(
            families["decoder"], **{"model_type": "decoder", **given}, example_data=DIALOGUES
        )


@pytest.mark.parametrize("mix", [mix_models, mix_models_by_layers])
@pytest.mark.parametrize(
    ("model_type", "weights", "said"),
    [
        ("decoder", [0.5, 0.2], "2 weights for 3 models"),
        ("decoder", [0.5, 0.3, 0.1], r"sum to 0\.9"),
        ("decoder", [0.5, 0.3, 0.3], r"sum to 1\.1"),
        ("decoder", [0.5, 0.5, float("nan")], "sum to nan"),
        ("encode", [0.5, 0.3, 0.2], "got 'encode'; did you mean 'encoder'"),
        ("embedder", [0.5, 0.3, 0.2], "model_type is one of decoder, encoder, reranker"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(
    families: dict[str, list[str]],
    tmp_path: Path,
    mix: Callable[..., PreTrainedModel],
    model_type: str,
    weights: list[float],
    said: str,
) -> None:
    with pytest.raises(ParameterError, match=said):
        mix(families["decoder"], model_type, weights, tmp_path / "mix")
    assert not (tmp_path / "mix").exists()


def test_nothing_is_written_over_files_or_without_a_head(
    families: dict[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MergeError, match="exists and is not empty"):
        mix_models(families["decoder"], "decoder", [0.5, 0.3, 0.2], tmp_path)
    with pytest.raises(MergeError, match="exists and is not empty"):
        mix_models_with_data(families["decoder"], "decoder", DIALOGUES, output_path=tmp_path)
    with pytest.raises(MismatchError, match="weights the merge does not have"):
        mix_models(families["encoder"], "reranker", [0.5, 0.3, 0.2], tmp_path / "mix")
    assert not (tmp_path / "mix").exists()


def test_models_of_other_shapes_are_refused(families: dict[str, list[str]], tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**{**SMALL, "hidden_size": 8})).save_pretrained(tmp_path)
    folders = [families["decoder"][0], tmp_path]
    with pytest.raises(MismatchError, match="equal shapes"):
        mix_models(folders, "decoder", [0.5, 0.5])
    with pytest.raises(MismatchError, match="equal shapes"):
        compute_weights(folders, "decoder", DIALOGUES)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "there are none; give about five"),
        ([{"input": "1", "outptu": "2"}], "example 1: no key 'outptu'; did you mean 'output'"),
        ([{"input": "1", "output": 2}], "example 1: output is a text; got 2"),
    ],
)
def test_examples_that_are_none_are_refused(
    families: dict[str, list[str]], rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(MergeError, match=said):
        mix_models_with_data(families["decoder"], "decoder", rows)


def test_no_models_are_refused() -> None:
    with pytest.raises(RecipeError, match="at least one"):
        mix_models([], "decoder", [])
    with pytest.raises(RecipeError, match="at least one"):
        compute_weights([], "decoder", DIALOGUES)


def test_the_package_alone_imports_none_of_it() -> None:
    code = "import merge_plugins, sys; assert 'merge_plugins.lm_cocktail' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
