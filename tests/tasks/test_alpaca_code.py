"""HumanEval's and MBPP's prompts and post-processing, as DARE and WIDEN published them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_adapters.tasks.scoring.code import (
    humaneval_program,
    humaneval_prompt,
    mbpp_program,
    mbpp_prompt,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
HEADER = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n\n### Instruction:\nCreate a Python script for this problem:\n"
)
BOTH = pytest.mark.parametrize("program", [humaneval_program, mbpp_program])


def test_humaneval_prompt_is_indented_with_tabs():
    given = 'def double(x: int) -> int:\n    """Twice x.\n      >>> double(2)\n    """\n'
    asked = 'def double(x: int) -> int:\n\t"""Twice x.\n\t  >>> double(2)\n\t"""\n'
    assert humaneval_prompt(given) == f"{HEADER}{asked}\n\n### Response:"


def test_mbpp_prompt_lists_its_tests_after_an_empty_line():
    row = {"task_id": 12, "text": "Add 1.", "test_list": ["assert f(1) == 2", "assert f([    ])"]}
    assert mbpp_prompt(row) == (
        f"{HEADER}\nAdd 1.\nTest examples:\nassert f(1) == 2\nassert f([\t])\n\n### Response:"
    )


def test_the_problem_whose_tests_are_too_long_shows_only_its_signature():
    row = {"task_id": 493, "text": "Tile.", "test_list": ["assert calculate_polygons(1) == []"]}
    assert mbpp_prompt(row) == (
        f"{HEADER}\nTile.\nTest examples:\n"
        "calculate_polygons(startx, starty, endx, endy, radius)\n\n### Response:"
    )


def test_every_real_mbpp_problem_has_a_prompt():
    file = SHARED / "mbpp.test.jsonl"
    if not file.is_file():
        pytest.skip("MBPP is not in this checkout")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    prompts = [mbpp_prompt(row) for row in rows]
    assert [row["task_id"] for row in rows] == list(range(11, 511))
    assert all("    " not in prompt and prompt.startswith(HEADER + "\n") for prompt in prompts)
    assert len(prompts[493 - 11]) < 1000 < len("".join(rows[493 - 11]["test_list"]))


@BOTH
@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("\n\ndef f():\n\treturn 1\n\n", "def f():\n    return 1"),
        ("Sure!\n```python\ndef f(): pass\n```\nIt works.", "def f(): pass"),
        ("```python\nA = 1\n```python\nB = 2\n```", "A = 1\n\nB = 2"),
        ("```\ndef f(): pass\n```", "```\ndef f(): pass\n```"),
        ("```python\ndef f(): pass", "\ndef f(): pass"),
        ("```python```", ""),
        ('def f(): pass\n\nif __name__ == "__main__":\n    f()', "def f(): pass"),
        ('if name == "x" and __name__ == "__main__": f()', None),
        ("def f(): pass\n\n# Example usage:\nf()", "def f(): pass"),
        ("The solution is:\ndef f(): pass\n\nThe answer is: 3", "def f(): pass"),
        ("We print.\nThe answer is:\nprint(3)", "print(3)"),
        ("first\n### Response: second\n### Response:\nthird", "third"),
    ],
)
def test_what_is_kept_of_a_completion(program, completion, kept):
    if program is mbpp_program and completion == "```python```":
        kept = "```"  # its fence ends only at the start of a line
    assert program(completion) == (completion if kept is None else kept)


@pytest.mark.parametrize("program", [humaneval_program, mbpp_program])
def test_a_bare_body_loses_its_first_indentation(program):
    assert program("    x = 1\n    return x\n") == "x = 1\n    return x"


def test_only_mbpp_ends_at_the_test_examples_and_keeps_carriage_returns():
    completion = "def f():\r\n    pass\n# Test examples\nassert f() is None"
    assert mbpp_program(completion) == "def f():\r\n    pass"
    assert humaneval_program(completion) == completion.replace("\r", "")


def test_a_fence_inside_a_line_ends_a_humaneval_program_only():
    completion = '```python\nfence = "```"\n```\nDone.'
    assert humaneval_program(completion) == 'fence = "'
    assert mbpp_program(completion) == 'fence = "```"'
