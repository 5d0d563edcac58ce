"""LM-Cocktail's losses against loops over single texts in float64, as its paper and code say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from merge_plugins.api import Example, Pooling
from merge_plugins.calibration.losses import ExampleLoss, shares
from merge_plugins.errors import ParameterError, RecipeError

WORDS = [str(number) for number in range(50)]
SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[END]"]
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def words(template: str = "", **special: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of one token per word; it has no padding token unless told."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        numbers = [(token, vocabulary[token]) for token in SPECIAL[1:]]
        backend.post_processor = processors.TemplateProcessing(
            single=template, pair=f"{template} $B:1 [SEP]:1", special_tokens=numbers
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def text(start: int, n_words: int) -> str:
    return " ".join(WORDS[(start + step * step) % len(WORDS)] for step in range(n_words))


DIALOGUES = [Example(text(i, 2 + 3 * i), text(7 * i + 1, 5 - i)) for i in range(5)]
RETRIEVAL = [
    Example(
        text(i, 3 + i),
        positives=(text(2 * i, 4), "0"),
        negatives=tuple(text(3 * i + j + 1, 1 + (i + j) % 5) for j in range(6)),
    )
    for i in range(5)
]
ENCODER = words("[CLS] $A [SEP]")


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=54, num_attention_heads=2, initializer_range=0.5, **SMALL)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=54, num_attention_heads=2, initializer_range=0.5, **SMALL)
    return BertModel(config).eval()


@pytest.fixture(scope="module")
def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(vocab_size=54, d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=2)
    config.decoder_start_token_id, config.initializer_factor = 0, 0.5
    return T5ForConditionalGeneration(config).eval()


class InFloat64:
    """The same numbers in float64: what the float32 of the loss is compared with."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> Any:
        return self.model.double()

    def __exit__(self, *_: object) -> None:
        self.model.float()


def one(tokenizer: Any, *given: str) -> dict[str, Tensor]:
    return {name: torch.tensor([ids]) for name, ids in tokenizer(*given).items()}


def negative_log(logits: Tensor, wanted: int) -> float:
    return math.log(sum(math.exp(x) for x in logits.tolist())) - float(logits[wanted])


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def batches(examples: Sequence[Example], size: int) -> list[Sequence[Example]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def drawn(loss: ExampleLoss, examples: Sequence[Example]) -> list[Example]:
    return [example for batch in loss._batches(examples) for example in batch]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_decoder_loses_per_token_of_a_batch_then_per_batch(
    llama: LlamaForCausalLM, batch_size: int
) -> None:
    tokenizer = words(eos_token="[END]")
    assert tokenizer.pad_token is None
    found = ExampleLoss("decoder", batch_size)(llama, tokenizer, DIALOGUES)
    expected = []
    with InFloat64(llama) as exact, torch.no_grad():
        for batch in batches(DIALOGUES, batch_size):
            tokens = []
            for example in batch:
                n_prompt = len(example.prompt.split())
                ids = [*tokenizer(f"{example.prompt} {example.response}").input_ids, 3]
                logits = exact(input_ids=torch.tensor([ids])).logits[0]
                tokens += [negative_log(logits[i - 1], ids[i]) for i in range(n_prompt, len(ids))]
            expected.append(mean(tokens))
    assert found == pytest.approx(mean(expected), rel=1e-5)


def test_the_decoder_loss_is_that_of_rows_padded_to_the_full_length(
    llama: LlamaForCausalLM,
) -> None:
    """What LM-Cocktail computes, given a tokenizer whose padding token it can use."""
    tokenizer, length = words(eos_token="[END]"), 40
    rows, labels = [], []
    for example in DIALOGUES:
        ids = [*tokenizer.encode(f"{example.prompt} {example.response}"), 3]
        prompt = tokenizer.encode(example.prompt)
        rows.append([*ids, *[0] * (length - len(ids))])
        label = [-100] * len(prompt) + ids[len(prompt) :]
        labels.append([*label, *[-100] * (length - len(ids))])
    ids, wanted = torch.tensor(rows), torch.tensor(labels)
    with torch.no_grad():
        expected = mean(
            [
                float(llama(ids[i : i + 2], ids[i : i + 2].ne(0), labels=wanted[i : i + 2]).loss)
                for i in range(0, len(rows), 2)
            ]
        )
    assert ExampleLoss()(llama, tokenizer, DIALOGUES) == pytest.approx(expected, rel=1e-6)


def test_all_tokens_of_a_text_without_response_are_scored(llama: LlamaForCausalLM) -> None:
    tokenizer, sample = words(eos_token="[END]"), text(3, 9)
    ids = one(tokenizer, sample)["input_ids"]
    with torch.no_grad():
        expected = float(llama(input_ids=ids, labels=ids).loss)
    found = ExampleLoss()(llama, tokenizer, [Example(sample)])
    assert found == pytest.approx(expected, rel=1e-6)


def test_of_a_prompt_too_long_the_end_is_read(llama: LlamaForCausalLM) -> None:
    tokenizer, prompt = words(eos_token="[END]"), text(0, 20)
    kept = " ".join(prompt.split()[-4:])
    found = ExampleLoss(max_input_length=8)(llama, tokenizer, [Example(prompt, "1 2 3")])
    assert found == ExampleLoss()(llama, tokenizer, [Example(kept, "1 2 3")])


def test_a_text_of_one_token_has_no_loss(llama: LlamaForCausalLM) -> None:
    with pytest.raises(RecipeError, match="'7' is read as less than 2 tokens"):
        ExampleLoss()(llama, words(), [Example("7")])


FIRST = Pooling(("cls", "normalize"))
MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda states: states[0],
    "max": lambda states: states.max(0).values,
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / math.sqrt(len(states)),
    "weightedmean": lambda states: (
        torch.arange(1.0, len(states) + 1).to(states) @ states / math.comb(len(states) + 1, 2)
    ),
    "lasttoken": lambda states: states[-1],
}
"""Poolings of one text's states [tokens, width], as sentence-transformers defines them."""


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("modes", [*MODES, "cls+mean"])
def test_an_encoder_loses_by_how_little_the_positive_stands_out(
    bert: BertModel, batch_size: int, modes: str
) -> None:
    pooling = Pooling((*modes.split("+"), "normalize"))
    loss = ExampleLoss("encoder", batch_size, neg_number=3, pooling=pooling)
    found = loss(bert, ENCODER, RETRIEVAL)
    expected = []
    with InFloat64(bert) as exact, torch.no_grad():

        def embed(sample: str) -> Tensor:
            states = exact(**one(ENCODER, sample)).last_hidden_state[0]
            state = torch.cat([MODES[mode](states) for mode in modes.split("+")])
            return state / math.sqrt(float((state * state).sum()))

        for batch in batches(drawn(loss, RETRIEVAL), batch_size):
            passages = [p for e in batch for p in (e.positives[0], *e.negatives)]
            assert len(passages) == 4 * len(batch)
            for place, example in enumerate(batch):
                query = embed(example.prompt)
                scores = torch.stack([query @ embed(p) / 0.05 for p in passages])
                expected.append(negative_log(scores, 4 * place) / len(batch))
    n_batches = math.ceil(len(RETRIEVAL) / batch_size)
    assert found == pytest.approx(sum(expected) / n_batches, rel=1e-4)


def rerankers() -> list[Any]:
    torch.manual_seed(0)
    shape = {"vocab_size": 54, "num_attention_heads": 2, "num_labels": 1, **SMALL}
    over_encoder = BertForSequenceClassification(BertConfig(initializer_range=0.5, **shape))
    over_decoder = LlamaForSequenceClassification(LlamaConfig(initializer_range=0.5, **shape))
    assert over_decoder.config.pad_token_id is None
    return [
        pytest.param(over_encoder.eval(), ENCODER, id="bert"),
        pytest.param(over_decoder.eval(), words(eos_token="[END]"), id="llama"),
    ]


@pytest.mark.parametrize(("model", "tokenizer"), rerankers())
def test_a_reranker_loses_by_how_little_the_positives_score_stands_out(
    model: Any, tokenizer: Any
) -> None:
    loss = ExampleLoss("reranker", 2, neg_number=4)
    found = loss(model, tokenizer, RETRIEVAL)
    expected = []
    with InFloat64(model) as exact, torch.no_grad():
        for example in drawn(loss, RETRIEVAL):
            passages = (example.positives[0], *example.negatives)
            scores = [exact(**one(tokenizer, example.prompt, p)).logits[0, 0] for p in passages]
            expected.append(negative_log(torch.stack(scores), 0))
    by_batch = [mean(batch) for batch in (expected[:2], expected[2:4], expected[4:])]
    assert found == pytest.approx(mean(by_batch), rel=1e-5)


def test_a_reranker_has_one_label() -> None:
    config = BertConfig(vocab_size=54, num_attention_heads=2, num_labels=3, **SMALL)
    model = BertForSequenceClassification(config).eval()
    with pytest.raises(RecipeError, match="has 3 labels; a reranker has one"):
        ExampleLoss("reranker", neg_number=2)(model, ENCODER, RETRIEVAL)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_encoder_decoder_loses_per_token_of_the_response(
    t5: T5ForConditionalGeneration, batch_size: int
) -> None:
    tokenizer = words("$A [END]", eos_token="[END]")
    found = ExampleLoss("encoder-decoder", batch_size)(t5, tokenizer, DIALOGUES)
    expected = []
    with InFloat64(t5) as exact, torch.no_grad():
        for batch in batches(DIALOGUES, batch_size):
            tokens = []
            for example in batch:
                wanted = tokenizer(example.response).input_ids
                before = torch.tensor([[0, *wanted[:-1]]])
                given = one(tokenizer, example.prompt)
                logits = exact(input_ids=given["input_ids"], decoder_input_ids=before).logits[0]
                tokens += [negative_log(logits[i], token) for i, token in enumerate(wanted)]
            expected.append(mean(tokens))
    assert found == pytest.approx(mean(expected), rel=1e-5)


def test_an_input_is_no_longer_than_the_model_has_positions(bert: BertModel) -> None:
    config = BertConfig(
        vocab_size=54, num_attention_heads=2, max_position_embeddings=8, num_labels=1, **SMALL
    )
    model = BertForSequenceClassification(config).eval()
    long = Example(text(0, 5), positives=(text(1, 30),), negatives=(text(2, 30),))
    assert math.isfinite(ExampleLoss("reranker", neg_number=1)(model, ENCODER, [long]))


def test_negatives_are_the_same_for_one_seed_and_other_for_another() -> None:
    def negatives(seed: int, batch_size: int = 2) -> list[tuple[str, ...]]:
        loss = ExampleLoss("encoder", batch_size, neg_number=3, seed=seed, pooling=FIRST)
        return [example.negatives for example in drawn(loss, RETRIEVAL)]

    assert negatives(0) == negatives(0) == negatives(0, batch_size=4)
    assert len({tuple(negatives(seed)) for seed in range(8)}) == 8
    for example, chosen in zip(RETRIEVAL, negatives(0), strict=True):
        assert len(set(chosen)) == 3
        assert set(chosen) <= set(example.negatives)
    n_drawn = dict.fromkeys(RETRIEVAL[0].negatives, 0)
    for seed in range(400):
        for negative in negatives(seed)[0]:
            n_drawn[negative] += 1
    assert all(150 < n < 250 for n in n_drawn.values())  # 200 each, with deviation 10


def test_all_negatives_are_used_where_there_are_just_enough() -> None:
    loss = ExampleLoss("reranker", neg_number=6)
    for example, kept in zip(RETRIEVAL, drawn(loss, RETRIEVAL), strict=True):
        assert sorted(example.negatives) == sorted(kept.negatives)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6), st.floats(0.1, 100))
def test_weights_are_the_softmax_of_the_negated_losses(
    losses: list[float], temperature: float
) -> None:
    found = shares(losses, temperature)
    odds = [math.exp(-(loss - min(losses)) / temperature) for loss in losses]
    assert found == pytest.approx([one / sum(odds) for one in odds], rel=1e-9)
    assert sum(found) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size 1 or more; got 0"),
        ({"max_input_length": 0}, "max_input_length 1 or more"),
        ({"neg_number": 0}, "neg_number 1 or more"),
    ],
)
def test_settings_that_no_loss_has_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        ExampleLoss(**settings)


@pytest.mark.parametrize(
    ("model_type", "example", "said"),
    [
        ("decoder", None, "there are none; give about five"),
        ("decoder", Example(""), "example 2 .* has no text"),
        ("encoder-decoder", Example("1"), "example 2 .* has no response"),
        ("encoder", Example("1", negatives=("2",) * 7), "example 2 .* has no positive"),
        ("reranker", Example("1", positives=("2",), negatives=("3",)), "has 1 of the 7 negatives"),
    ],
)
def test_examples_that_cannot_be_scored_are_refused(
    model_type: Any, example: Example | None, said: str
) -> None:
    good = Example("1", "2", positives=("3",), negatives=("4",) * 7)
    with pytest.raises(RecipeError, match=said):
        ExampleLoss(model_type).check([] if example is None else [good, example])


def test_a_loss_that_is_no_number_is_an_error(bert: BertModel) -> None:
    broken = BertModel(bert.config).eval()
    torch.nn.init.constant_(broken.embeddings.word_embeddings.weight, math.nan)
    with pytest.raises(RecipeError, match="is nan"):
        ExampleLoss("encoder", neg_number=2, pooling=FIRST)(broken, ENCODER, RETRIEVAL)
