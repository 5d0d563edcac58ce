"""Import a checkout of bigcode-evaluation-harness and adjust its tasks and evaluator.

Names used: ``parse_args``, ``pattern_match``, ``ALL_TASKS`` and ``Evaluator`` of its ``main.py``;
``TASK_REGISTRY`` and ``get_task`` of its ``bigcode_eval.tasks``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness_adapters import generation
from harness_adapters.tasks.scoring import code
from merge_plugins.errors import DataError, MergeError, RecipeError
from merge_plugins.installing import to_install

ADDRESS = "https://github.com/bigcode-project/bigcode-evaluation-harness"
USED = ("parse_args", "pattern_match", "ALL_TASKS", "Evaluator")
ANSWER = "### Response:"
Doc = Mapping[str, Any]
ALPACA: Mapping[str, tuple[Callable[[Doc], str], Callable[[Doc, str], str]]] = {
    "humaneval": (
        lambda doc: code.humaneval_prompt(doc["prompt"]),
        lambda doc, answer: doc["prompt"] + code.humaneval_program(answer),
    ),
    "mbpp": (code.mbpp_prompt, lambda doc, answer: code.mbpp_program(answer)),
}
"""Tasks with an alpaca prompt: a function to a problem's prompt, one to its answer's program."""


@dataclass(frozen=True)
class Harness:
    """The imported modules of a checkout."""

    main: Any
    registry: Any
    """``bigcode_eval.tasks``."""

    @classmethod
    def load(cls, folder: Path) -> Harness:
        """Import a checkout; raises `MergeError` that names what is missing."""
        file = folder.expanduser().absolute() / "main.py"
        if not file.is_file() or not (file.parent / "bigcode_eval").is_dir():
            raise MergeError(
                f"--harness {folder}: no checkout of bigcode-evaluation-harness, which has main.py "
                f"and bigcode_eval: git clone {ADDRESS}"
            )
        sys.path.insert(0, str(file.parent))
        spec = importlib.util.spec_from_file_location("bigcode_main", file)
        assert spec is not None
        assert spec.loader is not None
        main = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(main)
            registry = importlib.import_module("bigcode_eval.tasks")
        except ImportError as exc:
            raise MergeError(
                f"{file} cannot be imported: {exc}. For what it needs for most tasks: "
                + to_install("bigcode")
            ) from exc
        absent = [name for name in USED if not hasattr(main, name)]
        if absent:
            raise MergeError(f"{file} has no {', '.join(absent)}: a release we do not know")
        return cls(main, registry)

    def parse_args(self, given: Sequence[str]) -> argparse.Namespace:
        """Parse arguments by the harness's own parser."""
        before, sys.argv = sys.argv, ["main.py", *given]
        try:
            args: argparse.Namespace = self.main.parse_args()
        finally:
            sys.argv = before
        if args.prompt == "incoder":  # MBPP's own; the harness calls a task's own "prompt"
            args.prompt = "prompt"
        return args

    def tasks(self, args: argparse.Namespace) -> list[str]:
        """List the tasks that ``--tasks`` matches, sorted, so that all processes agree.

        Raises, before any weight is read, `DataError` for a task without its data, `RecipeError`
        for a task that would run programs without consent.
        """
        patterns = (args.tasks or "*").split(",")
        names = sorted(self.main.pattern_match(patterns, self.main.ALL_TASKS))
        for name in names:
            if args.prompt == "alpaca" and name not in ALPACA:
                raise RecipeError(f"--prompt alpaca is for {' and '.join(ALPACA)}; got {name}")
            task = self.registry.get_task(name, args)
            if task.requires_execution and not (args.allow_code_execution or args.generation_only):
                raise RecipeError(
                    f"{name} runs programs that the model writes. Add --allow_code_execution, "
                    "in a container or a virtual machine; or --generation_only"
                )
            try:
                len(task.get_dataset())
            except (AttributeError, AssertionError) as exc:
                raise DataError(
                    f"{name}: its data did not load ({exc}). Without a network, a folder of the "
                    f"data set's name in {Path.cwd()} is read instead"
                ) from exc
        return names


def named(path: str, label: str, args: argparse.Namespace) -> str:
    """Add the merge's label, the prompt style and the range of problems to a file name."""
    file = Path(path)
    marks = [file.stem, label]
    marks += [args.prompt] if args.prompt == "alpaca" else []
    marks += [f"from{args.limit_start}"] if args.limit_start else []
    marks += [f"limit{args.limit}"] if args.limit else []
    return str(file.with_name("_".join(marks) + file.suffix))


def of_task(path: str, task: str) -> str:
    """Return the file of a task's generations: ``--save_generations_path`` with the task's name."""
    file = Path(path)
    return str(file.with_name(f"{file.stem}_{task}.json"))


def write(file: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON whole or not at all, by default without indents, as the harness does."""
    generation.write(file, json.dumps(content, indent=indent, default=str))


def complete(evaluator: type) -> type:
    """Derive from the harness's `Evaluator` one that raises `DataError` if answers are missing.

    The harness itself scores a file of six answers to five hundred problems as six problems.
    """

    class Complete(evaluator):
        def generate_text(self, task_name: str, **given: Any) -> tuple[list[Any], list[Any]]:
            generations, references = super().generate_text(task_name, **given)
            args = self.args
            n_whole = sum(len(each) >= args.n_samples for each in generations)
            if not n_whole == len(generations) == len(references):
                source = args.load_generations_path or "the model"
                raise DataError(
                    f"{task_name}: {len(references)} problems need {args.n_samples} answers each; "
                    f"{source} gave as many to {n_whole}. For fewer problems say --limit"
                )
            # Processes that share problems unevenly answer some twice.
            return [each[: args.n_samples] for each in generations], references

        def save_json_files(
            self, generations: Any, references: Any, generations_path: str, references_path: str
        ) -> None:
            if self.args.save_generations:
                write(Path(generations_path), generations)
                print(f"generations were saved at {generations_path}")
            if self.args.save_references:
                write(Path(references_path), references)
                print(f"references were saved at {references_path}")

    return Complete


@contextmanager
def prompted(harness: Harness, args: argparse.Namespace, tokenizer: Any) -> Iterator[None]:
    """Replace the prompts of tasks in the harness's registry if ``--prompt`` is ``alpaca``."""
    registry = harness.registry.TASK_REGISTRY
    before = dict(registry)
    if args.prompt == "alpaca" and tokenizer is not None:
        for name in ALPACA.keys() & registry.keys():
            registry[name] = _alpaca(registry[name], *ALPACA[name], tokenizer.eos_token)
    try:
        yield
    finally:
        registry.update(before)


def _alpaca(
    task: Any, ask: Callable[[Doc], str], program: Callable[[Doc, str], str], eos: str
) -> type:
    class Alpaca(task):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.stop_words = [eos]  # an empty list would change how the harness decodes

        def get_prompt(self, doc: Doc) -> str:
            return ask(doc)

        def postprocess_generation(self, generation: str, idx: int) -> str:
            answer = generation.partition(ANSWER)[2].partition(eos)[0]
            return program(self.get_dataset()[idx], answer)

    return Alpaca
