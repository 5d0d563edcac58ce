"""Prompt, answer extraction and equivalence of GSM8K and MATH as DARE and WIDEN scored them.

Each benchmark has two readings of a completion: that of MergeLM and MergeLLM, needed to reproduce
published numbers with their quirks ("1,234,567" is read as 1234), and a correct one.
"""

from __future__ import annotations

import re
from fractions import Fraction

from harness_adapters.tasks.scoring.equivalence import equivalent, same_value

PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
STOPS = ("Instruction:", "Instruction", "Response:", "Response")
"""Where generation ends."""
MARK = "The answer is: "
"""What the published parser looks for: with this case, this colon and this space."""
CONCLUSION = re.compile(r"the (?:final )?answer is:?|####", re.IGNORECASE)
NUMBER = re.compile(
    r"(?P<sign>-[\s$€£*({]*)?"
    r"(?P<size>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<divisor>\d+))?"
)


def prompt(problem: str) -> str:
    """Return what a model is asked for one problem of GSM8K or MATH."""
    return PROMPT.format(problem=problem)


def _conclusion(completion: str) -> str | None:
    """Return what follows the last phrase that announces an answer."""
    announced = list(CONCLUSION.finditer(completion))
    return completion[announced[-1].end() :] if announced else None


# GSM8K


def gsm8k_scores(completion: str, answer: str) -> dict[str, float]:
    """Return both readings' scores of one completion, 0 or 1, and whether the published found none.

    ``answer`` is the data set's field: a solution that ends in ``#### 18``.
    """
    gold, published = gold_number(answer), mergelm_number(completion)
    return {
        "exact_match": float(number(completion) == gold),
        "exact_match_mergelm": float(published == gold),
        "no_answer": float(published is None),
    }


def gold_number(answer: str) -> Fraction:
    """Return the number after the ``####`` that ends a GSM8K solution."""
    return Fraction(answer.partition("#### ")[2].strip().replace(",", ""))


def mergelm_number(completion: str) -> int | None:
    """Return the answer as the published parser reads it, or None where it finds none.

    It takes at most one separator, so "1,234,567" is 1234; it rounds half to even, so "2.5" is 2.
    """
    _, mark, text = completion.rpartition(MARK)
    found = re.search(r"([-+]?\d*)([.,/]?)(\d+)", text) if mark else None
    if found is None:
        return None
    whole, separator, rest = found.groups()
    if separator == "/":
        if not whole.lstrip("+-"):
            return None
        divisor = int(rest) if rest == "0" or int(rest) else None
        return None if divisor is None else _round(Fraction(int(whole), divisor or 1))
    return _round(Fraction(found.group().replace(",", "")))


def number(completion: str) -> Fraction | None:
    """Return the answer as a reader would: the first number after the last "the answer is" or ####.

    Knows thousands separators, decimals, fractions (also ``\\frac{1}{2}``), signs, and currency or
    markup in front of the number.
    """
    text = _conclusion(completion)
    if text is None:
        return None
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", ",").replace("\\", " ")
    text = re.sub(r" [dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    found = NUMBER.search(text)
    if found is None or (found["divisor"] and not int(found["divisor"])):
        return None
    size = Fraction(found["size"].replace(",", "")) / int(found["divisor"] or 1)
    return -size if found["sign"] else size


def _round(value: Fraction) -> int | None:
    """Round as the published parser does, through a float; None where it overflows one."""
    try:
        return round(float(value))
    except OverflowError:
        return None


# MATH


def math_scores(completion: str, solution: str) -> dict[str, float]:
    """Return both readings' scores of one completion, 0 or 1, and whether the published found none.

    ``solution`` is the data set's field: a text whose last ``\\boxed{}`` is the answer.
    """
    answer, published = math_answer(completion), mergelm_math_answer(completion)
    gold, published_gold = boxed(solution), mergelm_gold(solution)
    if gold is None:
        raise ValueError(f"no \\boxed{{}} in the solution {solution[-80:]!r}")
    agrees = published is not None and published_gold is not None
    return {
        "exact_match": float(answer is not None and same_value(answer, gold)),
        "exact_match_mergelm": float(agrees and equivalent(str(published), str(published_gold))),
        "no_answer": float(published is None),
    }


def mergelm_math_answer(completion: str) -> str | None:
    """Return the answer as the published parser reads it: to the first full stop at a line's end.

    It keeps dollar signs and ``\\boxed{}``, which its equivalence then does not forgive.
    """
    _, mark, text = completion.rpartition(MARK)
    return text.partition(".\n")[0].strip().removesuffix(".").strip() if mark else None


def mergelm_gold(solution: str) -> str | None:
    """Return the published gold answer: None, which nothing equals, for a last ``\\fbox{}``."""
    return _braced(solution, solution.rfind("\\boxed"), "\\boxed{")


def math_answer(completion: str) -> str | None:
    """Return the answer as a reader would: after the last "the answer is", or in the last box."""
    text = _conclusion(completion)
    if text is None:
        return boxed(completion)
    text = re.split(r"\.(?:\s|$)|\n", text.strip(), maxsplit=1)[0]
    text = boxed(text) or text
    for left, right in (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left + right):
            text = text[len(left) : -len(right)].strip()
    return text.removesuffix(".")


def boxed(text: str) -> str | None:
    """Return what the last ``\\boxed{}``, "\\boxed 2" or ``\\fbox{}`` of a text holds."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    bare = re.match(r"\\boxed ([^\s$.,]+)", text[start:]) if start >= 0 else None
    return bare[1] if bare else _braced(text, start, "\\boxed{") or _braced(text, start, "\\fbox{")


def _braced(text: str, start: int, opening: str) -> str | None:
    """Return what stands between the brace that ends ``opening``, at ``start``, and its partner."""
    if start < 0 or not text.startswith(opening, start):
        return None
    depth, begin = 1, start + len(opening)
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if not depth:
            return text[begin:position]
    return None
