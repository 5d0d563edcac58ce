"""Explain where a text is not YAML, and what to write there."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

NO_SPACE = re.compile(r"\s*(?:- )?([\w-]+):([^\s:].*)")
"""A line ``key:value``, which to YAML is one word."""
COLUMNS = "Keys of one mapping, and items of one list, begin in one column"


def explained(text: str, exc: yaml.YAMLError) -> str:
    """Describe a mistake by its line, and say what to write."""
    if not isinstance(exc, yaml.MarkedYAMLError) or exc.problem_mark is None:
        return f"not YAML: {exc}"
    lines = [*text.splitlines(), ""]
    here, start = exc.problem_mark, exc.context_mark or exc.problem_mark
    line, advice = _advice(lines, f"{exc.context} {exc.problem}", here, start)
    first = _line_before(lines, line) if advice is COLUMNS else line
    shown = "\n".join(each[:80] for each in lines[first : line + 1])
    return f"line {line + 1} is not YAML:\n{shown}\n{advice}."


def _advice(
    lines: Sequence[str], problem: str, here: yaml.Mark, start: yaml.Mark
) -> tuple[int, str]:
    """Return the line with the mistake, from 0, and what to write in it.

    ``here``: where the text stops to make sense; ``start``: where what was being read begins.
    """
    line, rest = here.line, lines[start.line][start.column :]
    is_about_keys = "not allowed here" in problem or "expected ':'" in problem
    for each in (start.line, _line_before(lines, line)) if is_about_keys else ():
        if unspaced := NO_SPACE.match(lines[each]):
            return each, f"A space follows ':', as in  {unspaced[1]}: {unspaced[2]}"
    if "expected ':'" in problem:
        return start.line, "A ':' is missing behind the key"
    if "\\t" in problem:
        return line, "It is indented with a tab; write spaces"
    if "alias" in problem or "cannot start any token" in problem:
        word = re.split(r"[,\]}#]", rest)[0].strip()
        return line, f"What begins with {word[:1]} stands in quotes, as in  '{word}'"
    if "quoted scalar" in problem and "end of stream" in problem:
        return start.line, "The quote in it has no end"
    if "flow" in problem:
        return start.line, f"The {rest[:1] or 'bracket'} in it is not closed"
    if re.match(r"\s*-\w", lines[line]):
        return line, "A space follows '-'"
    if "not allowed here" in problem and ": " in lines[line][: here.column]:
        return line, "Text with ': ' in it stands in quotes"
    misplaced = "expected <" in problem or "not allowed here" in problem
    return line, COLUMNS if misplaced else problem.removeprefix("None ")


def _line_before(lines: Sequence[str], line: int) -> int:
    """Return the last line before one that has any text."""
    return next((each for each in range(line - 1, -1, -1) if lines[each].strip()), line)
