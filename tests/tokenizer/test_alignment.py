"""Vocabularies that differ: rows go together by token, in mergekit's way."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge_plugins import Recipe, identity, load_merged, merged_tensors, save
from merge_plugins.api import Region
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, MergeWarning, MismatchError, RecipeError
from merge_plugins.recipe.tokenizer import Tokenizer
from merge_plugins.tokenizer import Alignment, tokenizer_folder
from merge_plugins.tokenizer.alignment import merged_vocabulary
from merge_plugins.tokenizer.vocabulary import vocabulary
from merge_plugins.weights import StoredTensor, open_checkpoint
from merge_plugins.weights.rows import MEAN, OTHER, with_rows

Write = Callable[..., str]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FAMILIES = ("llama-fp32", "qwen2-bf16")
CASES = ("feat_tok_source_base", "feat_tok_union", "feat_tok_tokens")


@pytest.fixture
def spoken(checkpoint: Write) -> Callable[..., str]:
    """Write a model with one row per token: row i of a token is filled with its number."""

    def write(rows: Mapping[str, float], spare: Sequence[float] = (), **tensors: Tensor) -> str:
        values = torch.tensor([*rows.values(), *spare], dtype=torch.float32)
        table = values[:, None].expand(-1, 3).contiguous()
        weights = {EMBEDDING: table, HEAD: table + 0.5, "model.norm.weight": torch.ones(3)}
        sizes = {"model_type": "bare", "vocab_size": len(values)}
        folder = checkpoint({**weights, **tensors}, **sizes, eos_token_id=1)
        vocab = {token: row for row, token in enumerate(rows)}
        held = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab}}
        Path(folder, "tokenizer.json").write_text(json.dumps(held))
        return folder

    return write


def merge(method: str, base: str | None, experts: Sequence[str], **top: Any) -> Recipe:
    held = {"merge_method": method, "base_model": base, "models": [{"model": e} for e in experts]}
    return Recipe.from_mapping({**held, "parameters": {"weight": 1.0}, **top})


def column(recipe: Recipe, name: str = EMBEDDING) -> list[float]:
    found: list[float] = merged_tensors(recipe)[name][...][:, 0].tolist()
    return found


def test_rows_are_the_bases_by_token(spoken: Any, caplog: pytest.LogCaptureFixture) -> None:
    base = spoken({"a": 1, "</s>": 2, "b": 3})
    expert = spoken({"b": 33, "a": 11, "</s>": 22, "<pad>": 44})
    with caplog.at_level(logging.WARNING):
        recipe = merge("task_arithmetic", base, [expert], tokenizer_source="base")
        assert column(recipe) == [11, 22, 33]
    assert f"{expert}: 1 token is not in the merge's vocabulary and dropped: '<pad>'" in caplog.text
    assert column(recipe, HEAD) == [11.5, 22.5, 33.5]
    assert open_merge(recipe).plan.config["vocab_size"] == 3


def test_without_a_source_of_tokens_the_error_says_what_to_type(spoken: Any) -> None:
    base, expert = spoken({"a": 1, "b": 2}), spoken({"a": 1, "b": 2, "c": 3})
    with pytest.raises(
        MismatchError, match=r"vocabularies differ: set tokenizer_source: base, uni"
    ):
        open_merge(merge("task_arithmetic", base, [expert]))


def test_two_fine_tunes_with_pads_of_their_own(spoken: Any) -> None:
    base = spoken({"a": 1, "</s>": 2})
    first = spoken({"a": 11, "</s>": 12, "<pad>": 13})
    second = spoken({"a": 21, "</s>": 22, "[PAD]": 23})
    both = [first, second]
    assert column(merge("task_arithmetic", base, both, tokenizer_source="base")) == [31, 32]
    # a token that one model has is that model's row, in the others and the base too: no delta
    union = merge("task_arithmetic", base, both, tokenizer_source="union")
    assert column(union) == [31, 32, 13, 23]
    named = merge("task_arithmetic", base, both, tokenizer_source=second)
    assert column(named) == [31, 32, 23]
    assert column(merge("linear", None, both, tokenizer_source="union")) == [16, 17, 13, 23]


def test_a_token_that_several_have_and_no_base_is_their_mean(spoken: Any) -> None:
    base, lacking = spoken({"a": 0}), spoken({"a": 4})
    first, second = spoken({"a": 1, "x": 10}), spoken({"a": 2, "x": 30})
    recipe = merge("linear", None, [lacking, first, second], tokenizer_source="union")
    assert column(recipe)[1] == pytest.approx((20 + 10 + 30) / 3)
    based = merge("task_arithmetic", base, [lacking, first, second], tokenizer_source="union")
    assert column(based)[1] == pytest.approx(20 + (20 - 20) + (10 - 20) + (30 - 20))


def test_a_token_that_the_base_has_is_the_bases_where_it_lacks(spoken: Any) -> None:
    base = spoken({"a": 1, "x": 5})
    has, lacks = spoken({"a": 2, "x": 7}), spoken({"a": 3})
    assert column(merge("task_arithmetic", base, [has, lacks], tokenizer_source="base")) == [4, 7]


def test_spare_rows_go_and_an_id_without_a_row_is_no_row(spoken: Any, checkpoint: Write) -> None:
    base = spoken({"a": 1, "b": 2}, spare=[8, 9])
    short = spoken({"a": 3, "b": 4})
    assert column(merge("linear", None, [base, short], tokenizer_source="union")) == [2, 3]
    file = Path(short, "tokenizer.json")
    held = json.loads(file.read_text())
    held["added_tokens"] = [{"id": 2, "content": "<pad>"}]
    file.write_text(json.dumps(held))
    with pytest.warns(
        MergeWarning, match="'<pad>' has id 2, its embedding 2 rows. The merge takes"
    ):
        found = column(merge("linear", None, [base, short], tokenizer_source="union"))
    assert found == [2, 3, 0]


def test_rows_can_be_named_forced_and_padded(spoken: Any) -> None:
    base = spoken({"a": 1, "b": 2})
    expert = spoken({"a": 11, "b": 12, "c": 13})
    tokens = {
        "a": {"source": expert},  # both have it: changes nothing
        "b": {"source": {"kind": "model_token", "model": base, "token": "a"}, "force": True},
        "c": {"source": {"kind": "model_token", "model": base, "token_id": 1}},
        "d": {"source": {"kind": "zero"}},
    }
    wanted = {"source": expert, "tokens": tokens, "pad_to_multiple_of": 3}
    recipe = merge("linear", base, [base, expert], tokenizer=wanted)
    mean = torch.tensor([[1, 1, 2, 0.0], [11, 1, 13, 0.0]]).mean().item()
    assert column(recipe) == pytest.approx([6, 1, 7.5, 0, mean, mean])
    assert open_merge(recipe).plan.config["vocab_size"] == 6
    assert Recipe.from_mapping(recipe.as_dict()) == recipe
    assert list(vocabulary(tokenizer_folder(recipe))) == ["a", "b", "c", "d"]


def test_a_named_row_must_be_there(spoken: Any) -> None:
    base, stranger = spoken({"a": 1}), spoken({"z": 1})

    def refused(source: Any, message: str) -> None:
        tokens = {"x": {"source": source}}
        with pytest.raises(RecipeError, match=message):
            open_merge(merge("linear", base, [base], tokenizer={"tokens": tokens}))

    refused(stranger, r"tokens: x: .* is none of the models merged")
    refused(base, r"tokens: x: .* has no row for 'x'")
    refused({"kind": "model_token", "model": base, "token_id": 7}, "has no row for 7")


def test_a_model_without_a_tokenizer_has_the_donors_if_its_rows_fit(spoken: Any) -> None:
    base, expert = spoken({"a": 1, "b": 2}), spoken({"a": 3, "b": 4})
    Path(expert, "tokenizer.json").unlink()
    recipe = merge("task_arithmetic", base, [expert], tokenizer_source="base")
    assert column(recipe) == [3, 4]
    longer = spoken({"a": 3, "b": 4, "c": 5})
    Path(longer, "tokenizer.json").unlink()
    with pytest.raises(
        MismatchError, match=r"has no tokenizer files and 3 rows, .* has 2: copy the"
    ):
        open_merge(merge("task_arithmetic", base, [longer], tokenizer_source="base"))
    with pytest.raises(MismatchError, match="has no tokenizer files, so rows cannot be aligned"):
        open_merge(merge("task_arithmetic", longer, [base], tokenizer_source="base"))


def test_special_tokens_keep_their_meaning(spoken: Any) -> None:
    first = spoken({"a": 1, "</s>": 2, "b": 3})
    second = spoken({"b": 3, "a": 1})
    Path(first, "generation_config.json").write_text('{"eos_token_id": [1, 2], "top_k": 5}')
    recipe = merge("linear", None, [first, second], tokenizer_source=second)
    assert open_merge(recipe).plan.config["eos_token_id"] is None
    saved = save(recipe, Path(first).with_name("special"))
    held = json.loads((saved / "generation_config.json").read_text())
    assert held == {"eos_token_id": [0], "top_k": 5}


def test_only_rows_that_are_tokens_move(spoken: Any) -> None:
    positions = {"model.embed_positions.weight": torch.arange(6.0).view(2, 3)}
    square = {"model.layers.0.up_proj.weight": torch.arange(6.0).view(2, 3)}
    base = spoken({"a": 1, "b": 2}, **positions, **square)
    expert = spoken({"b": 4, "a": 3}, **positions, **square)
    found = merged_tensors(merge("linear", None, [base, expert], tokenizer_source="union"))
    assert found[EMBEDDING][...][:, 0].tolist() == [2, 3]
    for name, weight in (positions | square).items():
        assert torch.equal(found[name][...], weight)


@pytest.mark.parametrize("block", [1, 5, 1 << 19])
def test_any_box_of_gathered_rows_is_a_box_of_the_whole(block: int, checkpoint: Write) -> None:
    table = torch.arange(60.0).view(20, 3)
    weight = open_checkpoint(checkpoint({"w": table}))["w"]
    rows = [3, 4, 5, OTHER, 0, MEAN, 19, 18, OTHER, MEAN]
    found = with_rows(weight, rows, {3: [(weight, 1), (weight, 2)], 8: []})
    found.hold()
    expected = torch.zeros(10, 3)
    expected[[0, 1, 2, 4, 6, 7]] = table[[3, 4, 5, 0, 19, 18]]
    expected[3] = table[1:3].mean(0)
    expected[[5, 9]] = expected[[0, 1, 2, 3, 4, 6, 7, 8]].mean(0)
    for region in Region.whole((10, 3)).blocks(block):
        torch.testing.assert_close(found.read(region), region.of(expected))
    found.forget()
    assert with_rows(weight, list(range(20))) is weight


@given(st.permutations(range(7)), st.integers(0, 7))
def test_a_model_whose_rows_are_in_another_order_is_the_same_model(
    order: Sequence[int], n_tokens: int
) -> None:
    table = torch.arange(14.0).view(7, 2)
    tables = {"base": table, "expert": table[list(order)][:n_tokens]}
    known = {
        "base": {f"token {row}": row for row in range(7)},
        "expert": {f"token {row}": at for at, row in enumerate(order[:n_tokens])},
    }
    weights = {
        ref: StoredTensor("w", Path(ref), t.dtype, tuple(t.shape), t) for ref, t in tables.items()
    }
    tokens = merged_vocabulary(Tokenizer("union"), "base", known)
    alignment = Alignment(Tokenizer("union"), "base", tokens, known)
    for ref in tables:
        assert torch.equal(alignment.of(ref, weights).view(), table)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_mergekit_gives_the_same_tensors_and_tokens(
    family: str, case: str, shared_fixtures: Path
) -> None:
    root = shared_fixtures / "mergekit"
    folder = root / "expected" / family / case
    recipe = Recipe.from_mapping(yaml.safe_load((folder / "mergekit_config.yml").read_text()), root)
    found, expected = merged_tensors(recipe), load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name][...], weight, rtol=0, atol=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert open_merge(recipe).plan.config["vocab_size"] == config["vocab_size"]
    ours = tokenizer_folder(recipe)
    assert vocabulary(ours) == vocabulary(folder)
    text = "<|im_start|>hello<|im_end|> world"
    theirs = AutoTokenizer.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(ours)(text)["input_ids"] == theirs(text)["input_ids"]
    if case == "feat_tok_tokens":
        turns = [{"role": "user", "content": "hi"}]
        both = [AutoTokenizer.from_pretrained(f).apply_chat_template(turns, tokenize=False)
                for f in (ours, folder)]  # fmt: skip
        assert both[0] == both[1]


@pytest.fixture(scope="module")
def grown(llamas: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The two fine-tunes, each with a pad token and a row of its own, as the seeds' models have."""
    folders = []
    for name, pad in (("math", "[PAD]"), ("code", "<|pad|>")):
        folder = tmp_path_factory.mktemp("grown") / name
        shutil.copytree(llamas[name], folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": pad})
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


@pytest.mark.parametrize(("source", "rows"), [("base", 64), ("union", 66)])
def test_the_live_merge_is_the_saved_one_and_knows_its_tokens(
    source: str, rows: int, grown: list[str], llamas: Mapping[str, str], tmp_path: Path
) -> None:
    recipe = Recipe.from_mapping(
        {
            "merge_method": "ties",
            "base_model": llamas["base"],
            "models": [{"model": folder} for folder in grown],
            "parameters": {"weight": 0.7, "density": 0.5},
            "tokenizer_source": source,
        }
    )
    live, folder = load_merged(recipe), save(recipe, tmp_path / "saved")
    stored = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert live.config.vocab_size == stored.config.vocab_size == len(tokenizer) == rows
    ids = torch.arange(rows)[None]
    with torch.no_grad():
        assert torch.equal(live(ids).logits, stored(ids).logits)
    again = Recipe.load(folder)
    assert again == recipe
    assert identity.digest(again) == identity.digest(recipe)
    if source == "union":
        assert tokenizer.convert_ids_to_tokens([64, 65]) == ["[PAD]", "<|pad|>"]
        own = load_file(Path(grown[1], "model.safetensors"))[EMBEDDING][64]
        assert torch.equal(live.get_input_embeddings().weight[65], own)


def test_a_unigram_tokenizer_takes_no_token_in_the_middle(spoken: Any) -> None:
    base, expert = spoken({"a": 1}), spoken({"a": 1, "b": 2})
    held = {"added_tokens": [], "model": {"type": "Unigram", "vocab": [["a", -1.0]]}}
    Path(base, "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(MismatchError, match="'b' is no added token, and the unigram"):
        tokenizer_folder(merge("linear", base, [expert], tokenizer_source="union"))
    Path(base, "tokenizer.json").unlink()
    Path(base, "vocab.json").write_text('{"a": 0}')
    with pytest.raises(CheckpointError, match=r"no tokenizer.json to add 'b' to"):
        tokenizer_folder(merge("linear", base, [expert], tokenizer_source="union"))


def test_what_tokens_a_tokenizer_has_is_read_from_any_of_its_files(tmp_path: Path) -> None:
    assert vocabulary(tmp_path) == {}
    (tmp_path / "vocab.txt").write_text("[PAD]\nthe\n##s\n", encoding="utf-8")
    assert vocabulary(tmp_path) == {"[PAD]": 0, "the": 1, "##s": 2}
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 2}')
    decoder = {"added_tokens_decoder": {"3": {"content": "<x>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(decoder))
    assert vocabulary(tmp_path) == {"a": 0, "b": 1, "<pad>": 2, "<x>": 3}
    pieces = {
        "model": {"vocab": [["a", 0.0], ["b", -1.0]]},
        "added_tokens": [{"id": 2, "content": "c"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(pieces))
    assert vocabulary(tmp_path) == {"a": 0, "b": 1, "c": 2}


def test_a_sentencepiece_model_is_read_without_sentencepiece(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "▁the", "x" * 200]
    file = tmp_path / "tokenizer.model"
    encoded = b""
    for piece in pieces:
        raw = piece.encode()
        inner = b"\x0a" + varint(len(raw)) + raw + b"\x15\x00\x00\x80\x3f" + b"\x18\x01"
        encoded += b"\x0a" + varint(len(inner)) + inner
    file.write_bytes(encoded + b"\x12\x02\x18\x01")  # a trainer's message follows
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 4}')
    assert vocabulary(tmp_path) == {**{p: i for i, p in enumerate(pieces)}, "[PAD]": 4}
    for damaged in (encoded[:-3], b"\x0b\x00"):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is no sentencepiece model"):
            vocabulary(tmp_path)


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])
