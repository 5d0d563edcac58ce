"""Prompts and post-processing of HumanEval and MBPP as DARE and WIDEN scored them.

Protocol of MergeLM and MergeLLM: an alpaca prompt whose indentation is tabs, greedy decoding to
2,048 tokens, and rules that take the program out of what a chat model writes around it. Both the
prompts and the rules are theirs to the byte; `tests/tasks/test_alpaca_code.py` shows the quirks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n\n"
    "### Instruction:\nCreate a Python script for this problem:\n{problem}\n\n### Response:"
)
"""The alpaca prompt of both benchmarks; unlike alpaca's own it has two empty lines in front."""
LONG_EXAMPLES = {493: "calculate_polygons(startx, starty, endx, endy, radius)"}
"""MBPP problems whose tests would not fit the prompt, and what stands there instead."""
MAIN = 'if __name__ == "__main__":'


def humaneval_prompt(prompt: str) -> str:
    """Return what a model is asked for one HumanEval problem, given its ``prompt``."""
    return PROMPT.format(problem=_tabs(prompt))


def mbpp_prompt(row: Mapping[str, Any]) -> str:
    """Return what a model is asked for one MBPP row (``task_id``, ``text``, ``test_list``)."""
    long = LONG_EXAMPLES.get(row["task_id"])
    examples = [long] if long else row["test_list"]
    return PROMPT.format(problem=_tabs("\n".join(["", row["text"], "Test examples:", *examples])))


def humaneval_program(completion: str) -> str:
    """Return the part of a completion that HumanEval runs after the problem's prompt.

    Like the seeds', this strips the completion: one that is nothing but an indented function body
    loses its first indentation and fails. Models that answer this prompt repeat the function.
    """
    text = _spaces(completion).replace("\r", "").strip()
    text = _cut(_unfenced(text, "```"), MAIN, "# Example usage")
    return _code_alpaca(text)


def mbpp_program(completion: str) -> str:
    """Return the part of a completion that MBPP's tests are run on."""
    text = _spaces(completion).strip()
    text = _cut(_unfenced(text, "\n```"), MAIN, "# Example usage", "# Test examples")
    return _code_alpaca(text)


def _tabs(text: str) -> str:
    return text.replace("    ", "\t")


def _spaces(completion: str) -> str:
    """Undo `_tabs`, in what follows the last prompt that a model may have repeated."""
    return completion.rpartition("### Response:")[2].replace("\t", "    ")


def _unfenced(text: str, end: str) -> str:
    """Return what the first ``python`` fence holds, or the text itself when it has none."""
    _, fence, inside = text.partition("```python")
    return _cut(inside.replace("```python", ""), end) if fence else text


def _cut(text: str, *marks: str) -> str:
    """Drop each mark and what follows it."""
    for mark in marks:
        before, found, _ = text.partition(mark)
        text = before.strip() if found else text
    return text


def _code_alpaca(text: str) -> str:
    """Return the program in the phrases that llama-2-13b-code-alpaca puts around it."""
    solution, answer = "The solution is:", "The answer is:"
    if solution in text:
        text = text.partition(solution)[2].replace(solution, "")
        text = text.partition(f"\n\n{answer}")[0].strip()
    if answer in text:
        text = text.partition(answer)[2].replace(answer, "").strip()
    return text
