"""Pairs of sentences with grades from 0 to 5, as data sets of semantic similarity have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GROUPS = (
    ("A man is playing a guitar.", "Someone plays the guitar.",
     "A man is playing the drums.", "The concert was sold out."),
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch.",
     "The dog sleeps under the table.", "Our new sofa is green."),
    ("Interest rates rose again in March.", "In March, interest rates went up once more.",
     "Share prices fell sharply in March.", "She opened an account at the bank."),
    ("A woman is slicing an onion.", "A lady cuts up an onion.",
     "A woman is frying an egg.", "The restaurant opens at noon."),
    ("The train to Berlin was late.", "The Berlin train arrived behind schedule.",
     "The bus to Hamburg was on time.", "He works at the railway station."),
    ("Doctors recommend more sleep.", "Physicians advise people to sleep longer.",
     "Doctors recommend less sugar.", "The hospital has two hundred beds."),
    ("The engine needs more oil.", "There is too little oil in the motor.",
     "The car needs new tyres.", "Petrol has become expensive."),
    ("Two children are building a sandcastle.", "Two kids make a castle out of sand.",
     "Two children are swimming in the sea.", "The beach is closed in winter."),
    ("The team won the final by two goals.", "With a lead of two goals the side took the final.",
     "The team lost the first match.", "Tickets for the stadium cost thirty euros."),
    ("Snow is expected in the mountains tomorrow.", "Tomorrow it will snow in the hills.",
     "Rain is expected on the coast tomorrow.", "They went skiing last winter."),
    ("The professor wrote a book about whales.", "A book on whales was written by the professor.",
     "The professor gave a talk about dolphins.", "The library closes at eight."),
    ("He forgot his password again.", "Once more he could not remember his password.",
     "He lost his keys again.", "The computer is three years old."),
)  # fmt: skip
"""A sentence, the same in other words, something like it, something of the same field."""
GRADES = (5.0, 3.0, 1.5, 0.0)


def rows() -> list[dict[str, Any]]:
    """Each sentence beside the three others of its group, and the first of the next."""
    found = []
    for i, (first, *others) in enumerate(GROUPS):
        beside = (*others, GROUPS[(i + 1) % len(GROUPS)][0])
        found += [
            {"sentence1": first, "sentence2": second, "score": grade}
            for second, grade in zip(beside, GRADES, strict=True)
        ]
    return found


def write_sts12(root: Path) -> None:
    """Write the pairs where `datasets` looks for MTEB's STS12 before it asks the hub."""
    folder = root / "mteb" / "sts12-sts"
    folder.mkdir(parents=True)
    lines = (json.dumps(row) + "\n" for row in rows())
    (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")
