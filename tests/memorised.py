"""Tiny Llamas that know a few programs by heart, so that a score of their merge is exactly known.

Of six problems in MBPP's format `left` knows two and `right` one; neither knows the other's, and
nobody knows the last three. What each added to the base is trained together with their sum, so the
merge ``task_arithmetic`` of both, scale 1, knows exactly those three: pass@1 is 0.5. The base knows
none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness_adapters.tasks.scoring.code import mbpp_prompt
from merge_plugins import Recipe

STEPS = 400
"""Eight times what it takes."""
LOSS = 0.003
"""Nats per token, the worst of all examples: every token of an answer has odds of 99 to 1."""


class Example(NamedTuple):
    """What is known by heart: after this prompt, this answer and the end of the text."""

    prompt: str
    answer: str


def problem(number: int, text: str, code: str, *tests: str) -> dict[str, Any]:
    """Return a row of MBPP."""
    return {
        "task_id": number,
        "text": text,
        "code": code,
        "test_list": [f"assert {test}" for test in tests],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


PROBLEMS = (
    problem(
        *(9001, "Write a function to double a number.", "def double(x):\n    return x + x"),
        *("double(2) == 4", "double(0) == 0", "double(-3) == -6"),
    ),
    problem(
        *(9002, "Write a python function to find the longest word of a sentence."),
        "def longest(sentence):\n    words = sentence.split()\n    return max(words, key=len)",
        *('longest("a bcd ef") == "bcd"', 'longest("one") == "one"', 'longest("x yy") == "yy"'),
    ),
    problem(
        *(9003, "Write a function to check whether a list is sorted."),
        "def is_sorted(items):\n    for a, b in zip(items, items[1:]):\n"
        "        if a > b:\n            return False\n    return True",
        *("is_sorted([1, 2, 2])", "not is_sorted([2, 1])", "is_sorted([]) is True"),
    ),
    problem(
        *(9004, "Write a function to count the vowels of a text."),
        'def vowels(text):\n    return sum(c in "aeiou" for c in text)',
        *('vowels("banana") == 3', 'vowels("xyz") == 0', 'vowels("") == 0'),
    ),
    problem(
        *(9005, "Write a function to remove every zero of a list."),
        "def nonzero(items):\n    return [x for x in items if x]",
        *("nonzero([0, 1, 0]) == [1]", "nonzero([]) == []", "nonzero([2]) == [2]"),
    ),
    problem(
        *(9006, "Write a python function to swap the halves of a pair."),
        "def swapped(pair):\n    return pair[1], pair[0]",
        *("swapped((1, 2)) == (2, 1)", "swapped((0, 0)) == (0, 0)", "swapped((3, 1)) == (1, 3)"),
    ),
)
KNOWN = {"left": PROBLEMS[:2], "right": PROBLEMS[2:3]}
PASS_AT_1 = {"base": 0.0, "left": 2 / 6, "right": 1 / 6, "merge": 3 / 6}


def incoder_prompt(row: Mapping[str, Any]) -> str:
    """Return MBPP's prompt in bigcode-evaluation-harness: a docstring with one of the tests."""
    return f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""\n'


def examples(rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Return problems and their programs under both prompts."""
    return [
        Example(prompt(row), row["code"])
        for row in rows
        for prompt in (incoder_prompt, mbpp_prompt)
    ]


@dataclass(frozen=True)
class Memorised:
    """Folders of a base and two experts."""

    root: Path

    @property
    def base(self) -> str:
        return str(self.root / "base")

    @property
    def left(self) -> str:
        return str(self.root / "left")

    @property
    def right(self) -> str:
        return str(self.root / "right")

    def recipe(self, weight: float = 1.0) -> Recipe:
        """Return the merge that knows what both know; with another weight it knows nothing."""
        models = [{"model": model} for model in (self.left, self.right)]
        return Recipe.from_mapping(
            {
                "merge_method": "task_arithmetic",
                "base_model": self.base,
                "models": models,
                "parameters": {"weight": weight},
            }
        )

    def write_recipe(self, file: Path, weight: float = 1.0) -> Path:
        """Write `recipe` to a file; return it."""
        file.write_text(self.recipe(weight).to_yaml(), encoding="utf-8")
        return file


def memorise(root: Path, known: Mapping[str, Sequence[Example]]) -> Memorised:
    """Write a base and an expert for each name that knows its examples by heart; seconds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    everything = [example for some in known.values() for example in some]
    tokenizer = _tokenizer([text for example in everything for text in example])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.1,  # learns ten times faster than from 0.02
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    added = {name: {k: torch.zeros_like(v) for k, v in model.named_parameters()} for name in known}
    wanted = {(name,): _batch(tokenizer, some) for name, some in known.items()}
    wanted[tuple(known)] = _batch(tokenizer, everything)
    _train(model, added, wanted)
    weights = {"base": model.state_dict()}
    for name, delta in added.items():
        weights[name] = {k: v + delta[k].detach() for k, v in model.state_dict().items()}
    for name, state in weights.items():
        fresh = LlamaForCausalLM(config)
        fresh.load_state_dict(state)
        fresh.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return Memorised(root)


def _tokenizer(corpus: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )


def _batch(tokenizer: Any, some: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return tokens, padded on the right, and the labels of the answers: int64 [examples, n]."""
    prompts = [tokenizer(example.prompt)["input_ids"] for example in some]
    answers = [tokenizer(example.answer)["input_ids"] for example in some]
    ends = [*map(len, prompts)]
    rows = [p + a + [tokenizer.eos_token_id] for p, a in zip(prompts, answers, strict=True)]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    labels = ids.clone()
    for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
        labels[i, :end] = labels[i, len(row) :] = -100
    return ids, labels


def _train(
    model: nn.Module,
    added: Mapping[str, Mapping[str, Tensor]],
    wanted: Mapping[tuple[str, ...], tuple[Tensor, Tensor]],
) -> None:
    """Learn what is added to the base, alone and in sum, until every answer is all but certain."""
    base = {name: weight.detach() for name, weight in model.named_parameters()}
    learned = [delta.requires_grad_() for deltas in added.values() for delta in deltas.values()]
    optimizer = torch.optim.Adam(learned, lr=0.01)
    for _ in range(STEPS):
        worst: list[Tensor] = []
        for names, (ids, labels) in wanted.items():
            weights = {k: w + sum(added[name][k] for name in names) for k, w in base.items()}
            logits = torch.func.functional_call(model, weights, (ids,)).logits[:, :-1]
            each = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
            worst.append(each.sum(1) / (labels[:, 1:] != -100).sum(1))
        losses = torch.cat(worst)
        if losses.max() < LOSS:
            return
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    raise AssertionError(f"not known by heart after {STEPS} steps: {losses.tolist()}")
