"""A tiny model with a tokenizer of words, and fine-tunes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def write_family(model: Any, root: Path, words: Sequence[str], spread: float) -> dict[str, str]:
    """Write base, math and code, each the one before with noise on its weights; their folders."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbered = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(numbered, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    folders = {name: root / name for name in ("base", "math", "code")}
    for folder in folders.values():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(spread * torch.randn_like(weight))
    return {name: str(folder) for name, folder in folders.items()}
