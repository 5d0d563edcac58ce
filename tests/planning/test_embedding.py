"""How a merge of embedders embeds: as its models do, and they must agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from embedders import embedder

from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, MismatchError, RecipeError
from merge_plugins.identity import digest
from merge_plugins.planning.embedding import known, pooling_of
from merge_plugins.recipe import Lora

Write = Callable[..., str]
Recipes = Callable[..., Recipe]
MEAN, CLS = ("mean", "normalize"), ("cls", "normalize")


@pytest.fixture
def model(checkpoint: Write) -> Callable[[], str]:
    """A new model of one weight, for each call, that does not say how it embeds."""
    return lambda: checkpoint({"w": torch.zeros(2)}, "m", hidden_size=16)


def linear(*models: Any, **keys: Any) -> Recipe:
    parameters = {"parameters": {"weight": 0.5}}
    return Recipe.from_mapping(
        {"merge_method": "linear", "models": [*models], **parameters, **keys}
    )


def pooling(recipe: Recipe) -> Any:
    found = open_merge(recipe).plan.embedding
    return found and found.pooling


def test_models_that_agree_say_how_their_merge_embeds(model: Callable[[], str]) -> None:
    assert pooling(linear(embedder(model(), CLS), embedder(model(), CLS))) == CLS
    assert pooling(linear(model(), embedder(model(), ("max",)))) == ("max",)
    assert pooling(linear(model(), model())) is None
    inner = linear(embedder(model(), MEAN), model()).as_dict()
    assert pooling(linear({"model": inner}, model())) == MEAN


DIFFERENT = {
    "pooling": ({"pooling": CLS}, "pooling_mode of 1_Pooling is 'mean' .* 'cls'"),
    "normalisation": ({"pooling": ("mean",)}, "modules is 'Transformer, Pooling, Normalize'"),
    "a projection": ({"dense": 1}, "modules is .* 'Transformer, Pooling, Dense, Normalize'"),
    "longest text": ({"limit": 128}, "max_seq_length is not set .* 128"),
    "prompts": (
        {"settings": {"prompts": {"query": "q: "}}},
        r"prompts is not set .* \{'query': 'q: '\}",
    ),
    "similarity": (
        {"settings": {"similarity_fn_name": "dot"}},
        "similarity_fn_name is not set .* 'dot'",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_models_that_embed_differently_are_refused_until_one_is_chosen(
    what: str, model: Callable[[], str]
) -> None:
    given, said = DIFFERENT[what]
    first, second = embedder(model()), embedder(model(), **given)
    with pytest.raises(MismatchError, match=f"{first} and {second} embed differently: {said}"):
        open_merge(linear(first, second))
    for chosen in (first, second) if what != "a projection" else ():  # whose weights one lacks
        found = open_merge(linear(first, second, pooling=chosen)).plan.embedding
        assert found is not None
        assert str(found.folder) == chosen


def test_what_another_release_writes_is_the_same(model: Callable[[], str]) -> None:
    """Settings of release 6 beside those of release 2, with the defaults written out."""
    old, new = embedder(model(), MEAN, limit=256), embedder(model(), MEAN)
    package = "sentence_transformers"
    kinds = {
        "": "base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "base.modules.normalize.Normalize",
    }
    files: dict[str, Any] = {
        "modules.json": [{"path": p, "type": f"{package}.{kind}"} for p, kind in kinds.items()],
        "1_Pooling/config.json": {
            "embedding_dimension": 16,
            "pooling_mode": "mean",
            "include_prompt": True,
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        },
        "config_sentence_transformers.json": {
            "__version__": {package: "6.2.0"},
            "default_prompt_name": None,
            "model_type": "SentenceTransformer",
            "prompts": {"document": "", "query": ""},
            "similarity_fn_name": "cosine",
        },
        "tokenizer_config.json": {"model_max_length": 256},
    }
    for name, content in files.items():
        Path(new, name).write_text(json.dumps(content))
    assert pooling(linear(old, new)) == MEAN


@pytest.mark.parametrize("modes", ["mean", "cls+normalize", ["lasttoken", "normalize"]])
def test_where_no_model_says_so_the_recipe_does(modes: Any, model: Callable[[], str]) -> None:
    first, second = model(), model()
    recipe = linear(first, second, pooling=modes)
    words = modes.split("+") if isinstance(modes, str) else modes
    assert pooling(recipe) == tuple(words)
    assert Recipe.from_mapping(recipe.as_dict()) == recipe
    short = {"method": "linear", "models": f"{first}:0.5+{second}:0.5", "pooling": modes}
    assert Recipe.from_model_args(short) == recipe
    assert digest(recipe) != digest(linear(first, second))


def test_a_recipe_does_not_contradict_its_models(model: Callable[[], str]) -> None:
    said = r"pooling: \[cls, normalize\], but .* pools by \[mean, normalize\]\. Delete pooling:"
    with pytest.raises(MismatchError, match=said):
        open_merge(linear(embedder(model(), MEAN), model(), pooling=[*CLS]))
    assert pooling(linear(embedder(model(), MEAN), model(), pooling=[*MEAN])) == MEAN


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("meen", "did you mean 'mean'"),
        (["cls", "meen"], "no mode 'meen'; did you mean 'mean'"),
        ("normalize", "names modes, each once"),
        (["cls", "cls"], "names modes, each once"),
        (7, "."),
    ],
)
def test_a_pooling_that_is_none_is_refused(given: Any, said: str, model: Callable[[], str]) -> None:
    with pytest.raises(RecipeError, match=said):
        linear(model(), model(), pooling=given)


def test_a_model_that_says_nothing_cannot_be_followed(model: Callable[[], str]) -> None:
    silent = model()
    with pytest.raises(RecipeError, match=r"pooling: .* has no modules\.json"):
        open_merge(linear(silent, embedder(model()), pooling=silent))


def test_a_module_that_is_not_there_is_missed_in_every_model(model: Callable[[], str]) -> None:
    first, second = embedder(model()), embedder(model())
    Path(second, "1_Pooling", "config.json").unlink()
    Path(second, "1_Pooling").rmdir()
    with pytest.raises(CheckpointError, match=f"{second}: .* names 1_Pooling, a Pooling, which is"):
        open_merge(linear(first, second))


def test_an_embedder_that_says_nothing_is_asked_for_its_pooling() -> None:
    with pytest.raises(RecipeError, match=r"Write pooling: \[mean, normalize\]"):
        known(None)


def test_a_loss_does_not_leave_out_a_projection(model: Callable[[], str]) -> None:
    recipe = linear(embedder(model(), dense=1))
    with pytest.raises(RecipeError, match="these models have Dense too"):
        pooling_of(open_merge(recipe).plan.embedding)


def test_an_adapter_may_say_how_it_was_trained_to_embed(
    model: Callable[[], str], tmp_path: Path
) -> None:
    from merge_plugins.planning.embedding import embedding_of

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    ref, base = Lora(embedder(model(), MEAN), embedder(adapter, CLS)), model()
    recipe = linear(base, {"model": {"model": ref.model, "lora": ref.adapter}})
    found = embedding_of(recipe, {base: Path(base), ref: Path(str(ref.model))})
    assert found is not None
    assert found.pooling == CLS
