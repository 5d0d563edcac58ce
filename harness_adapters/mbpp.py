"""Write a merge's MBPP answers as bigcode-evaluation-harness reads them, and score them.

``python -m harness_adapters.mbpp recipe.yaml --data mbpp.test.jsonl --out gens.json`` writes the
file for bigcode's ``--load_generations_path``; ``--score --allow-code-execution`` runs the same
tests here. The papers generate like this, with the alpaca prompt, and use bigcode only to score;
bigcode itself generates with InCoder's prompt: ``--prompt incoder``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness_adapters import execution, generation
from harness_adapters.ending import exit_status
from harness_adapters.tasks.scoring.code import mbpp_program, mbpp_prompt
from merge_plugins import identity
from merge_plugins.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Style:
    """A prompt format: how to prompt for a problem, end an answer, and build its program."""

    prompt: Callable[[Row], str]
    program: Callable[[Row, str], str]
    stop: tuple[str, ...] = ()


def incoder_prompt(row: Row) -> str:
    """Build the prompt of bigcode's MBPP task: a docstring of the problem and its first test."""
    return f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""\n'


STYLES: Mapping[str, Style] = {
    "alpaca": Style(mbpp_prompt, lambda row, answer: mbpp_program(answer)),
    "incoder": Style(
        incoder_prompt,
        lambda row, answer: incoder_prompt(row) + answer,
        ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
    ),
}
"""``alpaca``: the papers' format. ``incoder``: bigcode's own, its prompt part of the program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write a program for every row of MBPP, in the order of the rows, or no file."""
    parser = argparse.ArgumentParser(
        prog="python -m harness_adapters.mbpp", description=main.__doc__
    )
    generation.add_arguments(parser, max_new_tokens=2048)
    parser.add_argument(
        "--data", required=True, type=Path, metavar="JSONL", help="rows of MBPP's test split"
    )
    parser.add_argument("--prompt", choices=STYLES, default="alpaca", help="(alpaca)")
    execution.add_arguments(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        help="seconds per program, Python's start included (5)",
    )
    options = parser.parse_args(argv)
    execution.check_consent(options)
    generator = generation.generator(options)
    results = options.out.with_name(f"{options.out.stem}_results.json")
    if options.score:
        generation.new_file(results)
    rows = read(options.data)[: options.limit]
    style = STYLES[options.prompt]
    answers = generator.complete(
        [style.prompt(row) for row in rows],
        max_new_tokens=options.max_new_tokens,
        stop=style.stop,
        task="mbpp",
    )
    label = identity.label(generator.recipe)
    programs = [style.program(row, answer) for row, answer in zip(rows, answers, strict=True)]
    generation.write(options.out, json.dumps([[program] for program in programs]))
    print(f"{options.out}: {len(programs)} programs of {label}")
    if options.score:
        passed = score(rows, programs, options.timeout)
        share = sum(passed) / len(rows)
        report = {
            "mbpp": {"pass@1": share},
            "model": label,
            "prompt": options.prompt,
            "passed": {str(row["task_id"]): ok for row, ok in zip(rows, passed, strict=True)},
        }
        generation.write(results, json.dumps(report, indent=2) + "\n")
        print(f"pass@1: {share:.4f} ({sum(passed)} of {len(rows)}), {results}")
    return 0


def read(file: Path) -> list[Row]:
    """Read MBPP rows from JSON lines, the format of its repository."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as exc:
        raise DataError(f"--data {file}: {exc}") from exc
    wanted = {"task_id": int, "text": str, "test_list": list}
    for i, row in enumerate(rows):
        for key, kind in wanted.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind) or not row[key]:
                raise DataError(f"{file}: row {i} has no {key} ({kind.__name__}): {row!r:.80}")
    if not rows:
        raise DataError(f"{file} holds no rows")
    return rows


def score(rows: Sequence[Row], programs: Sequence[str], seconds: float) -> list[bool]:
    """Run each program with its row's tests below it, as bigcode does; True for those that pass."""
    tested = [
        "\n".join((program, *row["test_list"])) for row, program in zip(rows, programs, strict=True)
    ]
    return execution.run_all(tested, seconds)


if __name__ == "__main__":
    sys.exit(exit_status(main))
