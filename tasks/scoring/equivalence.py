"""When two LaTeX answers of MATH are the same: the rules that came with it [Hendrycks et al. 2021].

The rules are a fixed rewriting, no algebra: "\\frac12", "0.5" and "1/2" are one answer, "x+1" and
"1+x" are two, and "$5$" is not "5". `same_value` adds what the rules forget about numbers.
"""

from __future__ import annotations

import re
from fractions import Fraction

REMOVED = ("\n", "\\!")
AS_FRAC = ("tfrac", "dfrac")
LAYOUT = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")
UNIT = "\\text{ "
"""Begins a unit, which ends the answer."""


def equivalent(answer: str, gold: str) -> bool:
    """Return whether the rules rewrite both to the same text; where one has no form, as written."""
    try:
        return normal_form(answer) == normal_form(gold)
    except ValueError:
        return answer == gold


def same_value(answer: str, gold: str) -> bool:
    """Return whether two answers are equivalent, or are the same number: 1,000 and 1000.0."""
    if equivalent(answer, gold):
        return True
    value = _number(answer)
    return value is not None and value == _number(gold)


def normal_form(answer: str) -> str:
    """Rewrite an answer; raises ValueError at one that the rules cannot read, such as "x/2"."""
    text = _without(answer, *REMOVED).replace("\\\\", "\\")
    for name in AS_FRAC:
        text = text.replace(name, "frac")
    text = _without(text, *LAYOUT)
    if text.count(UNIT) > 1:
        raise ValueError(f"two units in {answer!r}")
    text = _without(text.partition(UNIT)[0], "\\%").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = f"0{text}" if text[0] == "." else text
    name, equals, value = text.partition("=")
    if equals and len(name) <= 2 and "=" not in value:  # "x = 5"
        text = value
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    return _slash_as_fraction("\\frac{1}{2}" if text == "0.5" else text)


def _without(text: str, *parts: str) -> str:
    for part in parts:
        text = text.replace(part, "")
    return text


def _braced_roots(text: str) -> str:
    """Write "\\sqrt3" as "\\sqrt{3}"."""
    if re.search(r"\\sqrt(\\sqrt|$)", text):
        raise ValueError(f"a root of nothing in {text!r}")
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def _braced_fractions(text: str) -> str:
    """Write "\\frac12" and "\\frac1{72}" with braces around both parts."""
    first, *pieces = text.split("\\frac")
    braced = [first]
    for piece in pieces:
        if not piece:
            raise ValueError(f"a fraction of nothing in {text!r}")
        if piece[0] != "{":
            if len(piece) < 2:
                return text
            top, bottom, rest = piece[0], piece[1], piece[2:]
            piece = f"{{{top}}}{bottom}{rest}" if bottom == "{" else f"{{{top}}}{{{bottom}}}{rest}"
        braced.append(piece)
    return "\\frac".join(braced)


def _slash_as_fraction(text: str) -> str:
    """Write "3/4" as a fraction; a slash between other things than integers has no normal form."""
    if text.count("/") != 1:
        return text
    top, bottom = map(int, text.split("/"))
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def _number(answer: str) -> Fraction | None:
    """Return what an answer is worth if it is one number, written in digits or as a fraction."""
    try:
        text = normal_form(answer).replace("{,}", ",")
    except ValueError:
        return None
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"-?\d+(\.\d*)?", text):
        return Fraction(text.rstrip("."))
    fraction = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    if fraction is None or not int(fraction[3]):
        return None
    value = Fraction(int(fraction[2]), int(fraction[3]))
    return -value if fraction[1] else value
