"""Sailor's 19 configurations: what is asked, of which rows, and how an answer is scored.

With prompts.yml this is all that the tasks of both harnesses say; generate.py writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = {"th": "Thai", "id": "Indonesian", "vi": "Vietnamese", "jv": "Javanese"}
DATA = {
    "xquad": "XQuAD",
    "tydiqa": "TyDiQA",
    "xcopa": "XCOPA",
    "belebele": "Belebele",
    "m3exam": "M3Exam",
}
PROMPTS: Mapping[str, Any] = yaml.safe_load(
    Path(__file__).with_name("prompts.yml").read_text(encoding="utf-8")
)
NOTICE = "Made by tasks/sea/generate.py."
"""At the top of every file."""
METRICS = {
    "answer": ("em", "f1"),
    "any_answer": ("em", "f1"),
    "letter": ("em",),
    "digit": ("em",),
    "choice": ("acc", "acc_norm"),
}
"""What each kind of score reports in lm-eval; OpenCompass calls acc EM."""


@dataclass(frozen=True)
class Config:
    """One of Sailor's configurations."""

    data: str
    language: str
    file: str
    columns: tuple[str, ...]
    """What the prompt reads of a row."""
    score: str
    """A key of METRICS; a function of utils.py and an evaluator bear its name."""
    answer: str = "answer"
    """The column of the right answer."""
    max_out_len: int = 0
    """Tokens that a model may write; 0 where it chooses between answers."""
    batch_size: int = 0
    choices: tuple[str, ...] = ()
    """The columns of the answers to choose from,"""
    labels: str = ""
    """and what these are called, one character each."""
    number: str = ""
    """How many answers, where one test set has several numbers of them."""

    @property
    def prompt(self) -> Mapping[str, Any]:
        by_likelihood = "_ppl" if self.data == "m3exam" and self.choices else ""
        return PROMPTS[f"{self.data}_{self.language}{by_likelihood}"]

    @property
    def lm_eval(self) -> str:
        return f"sea_{self.data}_{self.language}{self._kind('', '_ll')}"

    @property
    def opencompass(self) -> str:
        return f"sea_{self.data}_{self.language}{self._kind('_gen', '_ppl')}"

    @property
    def variable(self) -> str:
        return f"sea_{self.data}_{self.language}{self._kind('', '_ppl')}_datasets"

    @property
    def abbr(self) -> str:
        return f"sea-{self.data}-{self.language}{self._kind('', '-ppl')}"

    def _kind(self, written: str, chosen: str) -> str:
        return chosen + self.number if self.choices else written


def _exam(language: str, file: str, answer: str, labels: str, number: str = "") -> Config:
    choices = tuple(f"options_{i}" for i in range(len(labels)))
    return Config(
        data="m3exam",
        language=language,
        file=f"m3exam/{file}.json",
        columns=("question_text", *choices),
        score="choice",
        answer=answer,
        choices=choices,
        labels=labels,
        number=number,
    )


READING, EXAM = ("context", "question"), ("question_text", "full_options")
CAUSES = ("choice1", "choice2")
ANSWERS = tuple(f"mc_answer{n}" for n in (1, 2, 3, 4))
EXAMS = tuple(f"m3exam/{name}-questions-test.json" for name in ("javanese", "thai", "vietnamese"))
SUITE: tuple[Config, ...] = (
    Config("xquad", "th", "xquad/xquad_th.json", READING, "answer", max_out_len=155, batch_size=4),
    Config("xquad", "vi", "xquad/xquad_vi.json", READING, "answer", max_out_len=95),
    Config(
        data="tydiqa",
        language="id",
        file="tydiqa_id/validation.jsonl",
        columns=READING,
        score="any_answer",
        max_out_len=100,
        batch_size=4,
    ),
    *(
        Config(
            data="xcopa",
            language=language,
            file=f"xcopa/{language}_test.jsonl",
            columns=("question", "premise", *CAUSES),
            score="choice",
            choices=CAUSES,
            labels="01",
        )
        for language in ("th", "id", "vi")
    ),
    *(
        Config(
            data="belebele",
            language=language,
            file=f"belebele/{file}.jsonl",
            columns=("flores_passage", "question", *ANSWERS),
            score="choice",
            choices=ANSWERS,
            labels="ABCD",
        )
        for language, file in (("th", "tha_Thai"), ("id", "ind_Latn"), ("vi", "vie_Latn"))
    ),
    Config("m3exam", "jv", EXAMS[0], EXAM, "letter", "answer_text", max_out_len=10),
    Config("m3exam", "th", EXAMS[1], EXAM, "digit", max_out_len=10),
    Config("m3exam", "vi", EXAMS[2], EXAM, "letter", "answer_text", max_out_len=10),
    _exam("jv", "javanese-questions-test", "answer_text", "ABCD"),
    *(_exam("th", f"thai-questions-test-{n}", "answer", "12345"[:n], f"{n}") for n in (2, 4, 5)),
    *(
        _exam("vi", f"vietnamese-questions-test-{n}", "answer_text", "ABCD"[:n], f"{n}")
        for n in (2, 3, 4)
    ),
)
"""Sailor's 19 configurations."""


def pieces(prompt: Mapping[str, Any], answer: str = "") -> list[str]:
    """Return a whole prompt as OpenCompass joins it with newlines, ending in an answer or not."""
    label = prompt["label"]
    found = [prompt["instruction"] + "\n"]
    for example in prompt["examples"]:
        found += [example["question"], f"{label} {example['answer']}\n"]
    return [*found, prompt["question"], f"{label} {answer}" if answer else label]
