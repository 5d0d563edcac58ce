"""Tiny models with random weights, tokenizers of words, and fine-tunes that differ by noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_plugins.weights.stored import write_header


def drift(model: Any, spread: float) -> Any:
    """Add noise of that size to all weights of a model; return it."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(spread * torch.randn_like(weight))
    return model


def seeded(config: Any, model_class: Any, seed: int = 0, **options: Any) -> Any:
    """Build a model of random weights: of an auto class, or of the model's own."""
    torch.manual_seed(seed)
    return getattr(model_class, "from_config", model_class)(config, **options)


def word_tokenizer(
    words: Sequence[str], *, unknown: str, blanks: bool = False, **special: Any
) -> Any:
    """Return a tokenizer of whole words; `blanks`: only blanks part them, punctuation does not."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbered = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(numbered, unk_token=unknown))
    split = pre_tokenizers.WhitespaceSplit if blanks else pre_tokenizers.Whitespace
    backend.pre_tokenizer = split()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write_family(
    model: Any,
    root: Path,
    names: Sequence[str] = ("base", "a", "b"),
    *,
    spread: float,
    tokenizer: Any = None,
) -> dict[str, str]:
    """Write a model under each name, each the one before with noise on its weights."""
    for name in names:
        model.save_pretrained(root / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(root / name)
        drift(model, spread)
    return folders(root, names)


def folders(root: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: str(root / name) for name in names}


def write_zeros(folder: str | Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write a weight file of zeros, bfloat16, that takes no room on disk."""
    header = write_header((name, torch.bfloat16, shape) for name, shape in shapes.items())
    with Path(folder, "model.safetensors").open("wb") as handle:
        handle.write(header)
        handle.truncate(len(header) + sum(2 * math.prod(shape) for shape in shapes.values()))


def rewrite(folder: str | Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a model's only weight file."""
    file = Path(folder, "model.safetensors")
    copies = {name: weight.clone().contiguous() for name, weight in change(load_file(file)).items()}
    save_file(copies, file, {"format": "pt"})


def edit(folder: str | Path, **keys: Any) -> None:
    """Set keys of a model's config.json; None deletes one."""
    file = Path(folder, "config.json")
    config = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


SMALL: Mapping[str, int] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Sizes of a tiny Llama and its like."""
