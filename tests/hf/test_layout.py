"""Models of one architecture merge whatever layout their files have, bit for bit."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from architectures import state, write
from families import SMALL, edit, rewrite, seeded, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from merge_plugins import Recipe, load_merged, merged_tensors, save
from merge_plugins.errors import MergeWarning, MismatchError
from merge_plugins.weights.pieces import Piece, inverted

Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]

MOE = {**SMALL, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16}
BERT = {key: SMALL[key] for key in SMALL if "key_value" not in key}


def recipe(base: Path, *experts: Path) -> Recipe:
    models = [{"model": str(expert), "parameters": {"weight": 0.5}} for expert in experts]
    return Recipe.from_mapping(
        {"merge_method": "task_arithmetic", "base_model": str(base), "models": models}
    )


def family(root: Path, model: Any, names: tuple[str, ...] = ("base", "a", "b")) -> list[Path]:
    for name in names:
        write(model, root / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    return [root / name for name in names]


def renamed(*pairs: tuple[str, str]) -> Change:
    def change(weights: Weights) -> Weights:
        found = {}
        for name, weight in weights.items():
            new = name
            for pattern, other in pairs:
                new = re.sub(pattern, other, new)
            found[new] = weight
        return found

    return change


def check(donor: Path, other: Path, wanted: Mapping[str, Tensor], model_class: Any) -> None:
    """The live merge and the saved one are the merge of models in one layout."""
    merge = recipe(donor, other)
    live = state(load_merged(merge, model_class))
    assert live.keys() == wanted.keys()
    assert all(torch.equal(live[name], wanted[name]) for name in wanted)
    saved = save(merge, donor.parent / f"saved-{donor.name}-{other.name}")
    again = state(model_class.from_pretrained(saved))
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


HUB: Mapping[str, tuple[Any, Any, Change]] = {
    "gpt2 without its prefix": (
        t.GPT2LMHeadModel,
        t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
        renamed((r"^transformer\.", "")),
    ),
    "bloom without its prefix": (
        t.BloomForCausalLM,
        t.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        renamed((r"^transformer\.", "")),
    ),
    "opt without its prefix": (
        t.OPTForCausalLM,
        t.OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=64,
        ),
        renamed((r"^model\.", "")),
    ),
    "bert with gamma and beta": (
        t.BertForMaskedLM,
        t.BertConfig(**BERT),
        renamed((r"Norm\.weight$", "Norm.gamma"), (r"Norm\.bias$", "Norm.beta")),
    ),
    "roberta without its prefix": (
        t.RobertaForMaskedLM,
        t.RobertaConfig(**BERT),
        renamed((r"^roberta\.", "")),
    ),
    "gpt-neox without its prefix": (
        t.GPTNeoXForCausalLM,
        t.GPTNeoXConfig(**BERT),
        renamed((r"^gpt_neox\.", "")),
    ),
    "qwen3-moe with fused experts": (
        t.Qwen3MoeForCausalLM,
        t.Qwen3MoeConfig(**MOE, head_dim=8),
        lambda weights: weights,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_a_file_of_the_hub_merges_with_one_that_was_saved(name: str, tmp_path: Path) -> None:
    model_class, config, change = HUB[name]
    base, a = family(tmp_path, seeded(config, model_class), ("base", "a"))
    wanted = state(load_merged(recipe(base, a), model_class))
    for folder in (base, a):
        other = folder.with_name(f"{folder.name}-hub")
        fused = folder.with_name(f"{folder.name}-live") if "fused" in name else folder
        shutil.copytree(fused, other)
        rewrite(other, change)
        model_class.from_pretrained(other)
    for donor, other in (("base-hub", "a"), ("base", "a-hub"), ("base-hub", "a-hub")):
        check(tmp_path / donor, tmp_path / other, wanted, model_class)


def test_fused_experts_are_read_as_views_of_the_file(tmp_path: Path) -> None:
    """Experts of a fused file are merged box by box: no copy, and no expert as a whole."""
    base, a = family(tmp_path, seeded(t.MixtralConfig(**MOE), t.MixtralForCausalLM), ("base", "a"))
    live = tmp_path / "a-live"
    merged = merged_tensors(recipe(base, live))
    name = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    (expert,) = merged[name].planned.experts
    fused = load_file(live / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(expert.view(), fused[2, fused.shape[1] // 2 :])
    alone = load_file(a / "model.safetensors")[name]
    part = merged[name][3:7, 5:9]
    assert torch.equal(part, merged_tensors(recipe(base, a))[name][3:7, 5:9])
    assert torch.equal(expert.view(), alone)


def test_a_text_model_merges_into_the_text_of_a_vision_language_model(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 4, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = t.LlavaConfig(
        text_config=t.LlamaConfig(**SMALL), vision_config=t.CLIPVisionConfig(**vision)
    )
    whole = seeded(config, t.LlavaForConditionalGeneration)
    write(whole, tmp_path / "base")
    text = t.LlamaForCausalLM(t.LlamaConfig(**SMALL))
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    with torch.no_grad():
        for weight in text.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    write(text, tmp_path / "text")
    with pytest.warns(
        MergeWarning, match="copied from .*base, not merged, because .*text has none"
    ):
        live = load_merged(recipe(tmp_path / "base", tmp_path / "text"), type(whole))
    merged, own, base = live.state_dict(), text.state_dict(), whole.state_dict()
    for name, weight in base.items():
        inner = name.removeprefix("model.language_model.")
        twin = own.get(name if name.startswith("lm_head") else f"model.{inner}")
        wanted = weight if twin is None else weight + 0.5 * (twin - weight)
        assert torch.equal(merged[name], wanted), name


@pytest.mark.parametrize("who", ["base", "a"])
def test_weights_that_the_class_ignores_are_in_nobodys_way(who: str, tmp_path: Path) -> None:
    base, a = family(
        tmp_path, seeded(t.Qwen3Config(**SMALL, head_dim=8), t.Qwen3ForCausalLM), ("base", "a")
    )
    wanted = state(load_merged(recipe(base, a)))
    extra = {"mtp.fc.weight": torch.ones(3, 4), "mtp.layers.0.norm.weight": torch.ones(3)}
    rewrite(tmp_path / who, lambda weights: {**weights, **extra})
    said = (
        "2 weights copied from .*base, not merged" if who == "base" else "2 weights of .*a left out"
    )
    with pytest.warns(MergeWarning, match=said):
        live = state(load_merged(recipe(base, a)))
    assert all(torch.equal(live[name], wanted[name]) for name in wanted)
    with pytest.warns(MergeWarning):
        saved = load_file(save(recipe(base, a), tmp_path / "saved") / "model.safetensors")
    assert ("mtp.fc.weight" in saved) == (who == "base")


def test_weights_that_the_class_ignores_are_of_no_layer_of_a_stack(tmp_path: Path) -> None:
    base, a = family(
        tmp_path, seeded(t.Qwen3Config(**SMALL, head_dim=8), t.Qwen3ForCausalLM), ("base", "a")
    )
    extra = {"mtp.layers.0.norm.weight": torch.ones(3)}
    rewrite(a, lambda weights: {**weights, **extra})
    stack = Recipe.from_mapping(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": str(base), "layer_range": [0, 2]}]},
                {"sources": [{"model": str(a), "layer_range": [1, 2]}]},
            ],
        }
    )
    with pytest.warns(MergeWarning, match="1 weight of .*a left out of the stack"):
        model = load_merged(stack)
    assert len(model.model.layers) == 3


# Ties.


def gemma(root: Path) -> list[Path]:
    config = t.Gemma2Config(**SMALL, head_dim=8)
    folders = family(root, seeded(config, t.Gemma2ForCausalLM), ("base", "a"))
    for folder in folders:
        edit(folder, tie_word_embeddings=None)
    return folders


def with_head(weights: Weights) -> Weights:
    return {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}


STORED: Mapping[str, Change] = {
    "both names": with_head,  # as old .bin files do
    "the head alone": renamed((r"^model\.embed_tokens", "lm_head")),  # as sharded trainers do
}


@pytest.mark.parametrize("who", [("a",), ("base",), ("base", "a")], ids="+".join)
@pytest.mark.parametrize("stored", STORED)
def test_an_embedding_that_the_class_ties_may_be_stored_under(
    stored: str, who: tuple[str, ...], tmp_path: Path
) -> None:
    base, a = gemma(tmp_path)
    wanted = state(load_merged(recipe(base, a)))
    for name in who:
        rewrite(tmp_path / name, STORED[stored])
    check(base, a, wanted, t.Gemma2ForCausalLM)


def test_a_layer_for_further_tokens_past_the_last_is_in_nobodys_way(tmp_path: Path) -> None:
    qwen = seeded(t.Qwen3Config(**SMALL, head_dim=8), t.Qwen3ForCausalLM)
    base, a = family(tmp_path, qwen, ("base", "a"))
    wanted = state(load_merged(recipe(base, a)))

    def with_more(weights: Weights) -> Weights:
        last = {n: w for n, w in weights.items() if n.startswith("model.layers.1.")}
        more = {n.replace("layers.1.", "layers.2."): w for n, w in last.items()}
        return {**weights, **more, "model.layers.2.eh_proj.weight": torch.ones(3, 4)}

    rewrite(base, with_more)
    with pytest.warns(MergeWarning, match="copied from .*base"):
        live = state(load_merged(recipe(base, a)))
    assert all(torch.equal(live[name], wanted[name]) for name in wanted)
    rewrite(a, with_more)
    live = state(load_merged(recipe(base, a)))
    assert all(torch.equal(live[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("who", [("a",), ("base", "a")], ids="+".join)
def test_two_heads_under_a_tied_config_are_told(who: tuple[str, ...], tmp_path: Path) -> None:
    base, a = gemma(tmp_path)
    for name in who:
        rewrite(tmp_path / name, with_head)
    rewrite(a, lambda weights: {**weights, "lm_head.weight": 2 * weights["lm_head.weight"]})
    with pytest.raises(MismatchError, match=r"stores lm_head\.weight and model\.embed_tokens"):
        load_merged(recipe(base, a))


def test_a_source_of_one_layout_is_taken_as_it_is(tmp_path: Path) -> None:
    base, a = family(tmp_path, seeded(t.LlamaConfig(**SMALL), t.LlamaForCausalLM), ("base", "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MergeWarning)
        load_merged(recipe(base, a))


# Pieces.

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def cut(name: str, shape: tuple[int, ...], dim: int) -> tuple[tuple[Piece, ...], dict[str, Tensor]]:
    """A weight of that shape, stored as one file tensor per index of a dimension."""
    table = torch.arange(float(torch.Size(shape).numel())).view(shape)
    pieces, stored = [], {}
    for at in range(shape[dim]):
        rest = shape[:dim] + shape[dim + 1 :]
        part = Piece.whole(f"{name}.{at}", rest)
        order = [*range(dim), None, *range(dim, len(rest))]
        pieces.append(part.permuted(order).moved(dim, at))
        stored[f"{name}.{at}"] = table.select(dim, at)
    return tuple(pieces), stored


@given(shape=SHAPES, data=st.data())
def test_pieces_of_one_layout_are_read_from_another(shape: list[int], data: st.DataObject) -> None:
    from merge_plugins.weights.pieces import arranged
    from merge_plugins.weights.stored import StoredTensor

    dims = st.integers(0, len(shape) - 1)
    mine, wanted = cut("mine", tuple(shape), data.draw(dims))
    theirs, stored = cut("theirs", tuple(shape), data.draw(dims))
    sources = {
        name: StoredTensor(name, Path("file"), value.dtype, tuple(value.shape), value)
        for name, value in stored.items()
    }
    for name, pieces in inverted({"weight": mine}, {"weight": theirs}).items():
        made = arranged(name, wanted[name].shape, pieces, sources)
        assert made is not None
        assert torch.equal(made.view(), wanted[name])


@pytest.mark.parametrize("donor", ["a", "a-live"])
def test_statistics_are_those_of_the_layout_that_is_merged(donor: str, tmp_path: Path) -> None:
    """What a statistic was computed for under one layout's names is not taken for another's."""
    words = ["<unk>", "<s>", "</s>", *map(str, range(61))]
    models = family(tmp_path, seeded(t.MixtralConfig(**MOE), t.MixtralForCausalLM), ("a", "b"))
    for folder in (*models, *(model.with_name(f"{model.name}-live") for model in models)):
        word_tokenizer(words, unknown="<unk>", eos_token="</s>").save_pretrained(folder)
    (tmp_path / "data.jsonl").write_text('{"text": "1 2 3 4 5"}\n{"text": "9 8 7"}\n')

    def fisher(*names: str) -> Recipe:
        return Recipe.from_mapping(
            {
                "merge_method": "fisher_merging",
                "models": [{"model": str(tmp_path / name)} for name in names],
                "data": str(tmp_path / "data.jsonl"),
            }
        )

    wanted = state(load_merged(fisher("a", "b")))
    load_merged(fisher("b-live", "b"))  # leaves statistics of b under the live names
    found = state(load_merged(fisher(donor, "b")))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
