"""Two tasks, whose problems are in a folder of the data set's name below the current one."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

Doc = dict[str, Any]


class Task:
    DATASET_PATH = ""
    requires_execution = True

    def __init__(self, stop_words: list[str]) -> None:
        self.stop_words = stop_words
        try:
            lines = Path(self.DATASET_PATH, "test.jsonl").read_text().splitlines()
            self.dataset = {"test": [json.loads(line) for line in lines]}
        except OSError as exc:
            warnings.warn(f"Loading the dataset failed with {exc}", stacklevel=2)

    def get_dataset(self) -> list[Doc]:
        return self.dataset["test"]

    def postprocess_generation(self, generation: str, idx: int) -> str:
        prompt = self.get_prompt(self.dataset["test"][idx])
        answer = generation[len(prompt) :]
        ends = [answer.find(word) for word in self.stop_words if word in answer]
        return prompt + answer[: min(ends, default=None)]

    def process_results(self, generations: list[list[str]], references: list[str]) -> Doc:
        passed = [
            [_runs(f"{program}\n{reference}") for program in programs]
            for programs, reference in zip(generations, references, strict=True)
        ]
        return {"pass@1": sum(sum(each) / len(each) for each in passed) / len(passed)}


class MBPP(Task):
    DATASET_PATH = "mbpp"

    def __init__(self) -> None:
        super().__init__(["\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"])

    def get_prompt(self, doc: Doc) -> str:
        return f'"""\n{doc["text"]}\n{doc["test_list"][0]}\n"""\n'

    def get_reference(self, doc: Doc) -> str:
        return "\n".join(doc["test_list"])


class HumanEval(Task):
    DATASET_PATH = "openai_humaneval"

    def __init__(self) -> None:
        super().__init__(["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```"])

    def get_prompt(self, doc: Doc) -> str:
        return doc["prompt"].strip()

    def get_reference(self, doc: Doc) -> str:
        return f"\n{doc['test']}\ncheck({doc['entry_point']})"


class Words(Task):
    """A task without programs."""

    DATASET_PATH = "mbpp"
    requires_execution = False

    def __init__(self) -> None:
        super().__init__(["\n"])

    def get_prompt(self, doc: Doc) -> str:
        return doc["text"]

    def get_reference(self, doc: Doc) -> str:
        return doc["text"]

    def process_results(self, generations: list[list[str]], references: list[str]) -> Doc:
        return {"letters": sum(len(each[0]) for each in generations)}


def _runs(program: str) -> bool:
    command = [sys.executable, "-I", "-S", "-c", program]
    return not subprocess.run(command, capture_output=True, timeout=60).returncode


TASK_REGISTRY = {"humaneval": HumanEval, "mbpp": MBPP, "words": Words}
ALL_TASKS = sorted(TASK_REGISTRY)


def get_task(task_name: str, args: Any = None) -> Task:
    return TASK_REGISTRY[task_name]()
