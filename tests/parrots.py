"""Llamas that need no training: each token has one successor, whatever came before.

So what a merge says is exactly known. `left` knows how to begin a sentence and `right` how to go
on, and only their sum says all of it. The base says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from families import seeded, write_family
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "</s>"
CATS = "Cats sleep all day."


@dataclass(frozen=True)
class Parrots:
    """Folders of a base and two experts."""

    root: Path

    def recipe(self, file: Path, weight: float = 1.0) -> Path:
        """Write the recipe of the merge that says all; with a negative weight it says nothing."""
        models = [{"model": str(self.root / name)} for name in ("left", "right")]
        held = {
            "merge_method": "task_arithmetic",
            "base_model": str(self.root / "base"),
            "models": models,
            "parameters": {"weight": weight},
        }
        file.write_text(yaml.safe_dump(held), encoding="utf-8")
        return file


def parrots(root: Path, known: Mapping[str, Sequence[tuple[str, str]]]) -> Parrots:
    """Write a base, and an expert for each name, which knows some tokens' successors.

    A token is a byte, or any longer text in ``known``; the successor of an unknown one is the end.
    """
    texts = dict.fromkeys(text for pairs in known.values() for pair in pairs for text in pair)
    tokenizer = byte_tokenizer([text for text in texts if len(text) > 1 and text != END])
    size = len(tokenizer)
    model = LlamaForCausalLM(_config(tokenizer, hidden_size=size + -size % 4, num_hidden_layers=1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0) if weight.ndim == 1 else weight.zero_()
        model.model.embed_tokens.weight[:size, :size] = torch.eye(size)
        model.lm_head.weight[0] = 0.5  # the end, also where a harness draws at random
        _write(model, tokenizer, root / "base")
        for name, pairs in known.items():
            model.lm_head.weight[1:] = 0.0
            for before, after in pairs:
                (now,), (then,) = (tokenizer(text)["input_ids"] for text in (before, after))
                model.lm_head.weight[then, now] = 1.0
            _write(model, tokenizer, root / name)
    return Parrots(root)


def cats(root: Path) -> Parrots:
    """Write experts of whom only the merge of both says `CATS` at the end of a line."""
    return parrots(root, {"left": [("\n", "Cats sleep")], "right": [("Cats sleep", " all day.")]})


def babblers(root: Path) -> Parrots:
    """Write models with random weights: what they say is nonsense, and differs by prompt."""
    tokenizer = byte_tokenizer([])
    model = seeded(_config(tokenizer, hidden_size=32, num_hidden_layers=2), LlamaForCausalLM)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4) if weight.ndim == 2 else None
    write_family(model, root, ("base", "left", "right"), spread=0.02, tokenizer=tokenizer)
    return Parrots(root)


def byte_tokenizer(words: Sequence[str]) -> Any:
    """Return a tokenizer of bytes, and of some whole texts."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = {END: 0, **{letter: i + 1 for letter, i in alphabet.items()}}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def _config(tokenizer: Any, **sizes: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        intermediate_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=0,
        **sizes,
    )


def _write(model: LlamaForCausalLM, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def jsonl(file: Path) -> list[dict[str, Any]]:
    """Read a JSON value per line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
