"""A family of tiny Llamas that can be run, for methods that look at live models or at data."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from merge_plugins.api import Example
from merge_plugins.recipe import Data

EXAMPLES = (Example("1 2 3", "4 5"), Example("6", "7 8 9 10"), Example("11 12", "13"))
SIZES: Mapping[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
}


def model(number: int) -> Any:
    """Build one of the family: 0, 1, 2, … are fine-tunes of -1."""
    return copy.deepcopy(_model(number))


@functools.cache
def _model(number: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
        built.eval()
        torch.manual_seed(number + 1)
        with torch.no_grad():
            for weight in built.parameters():
                weight.add_(0.3 * (number + 1) * torch.randn_like(weight))
    return built


@functools.cache
def tokenizer() -> Any:
    """Build the family's tokenizer, of whole words: "?", "end" and the numbers up to 13."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["?", "end", *map(str, range(14))]
    numbered = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(numbered, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=backend, eos_token="end")


def batches() -> Iterator[Mapping[str, Tensor]]:
    """Tokenise the examples."""
    from merge_plugins.calibration.batches import batches

    return batches(tokenizer(), EXAMPLES, Data(path="examples"), classifier=False)
