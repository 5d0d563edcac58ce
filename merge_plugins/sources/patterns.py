"""Match the names of modules by an adapter's regular expressions, in time bounded by their size.

Python's `re` tries one way to match after the other: ``(a+)+b`` takes it longer than the universe
has existed, on a name of sixty characters. Here an expression becomes an automaton, and all states
that it may be in are followed at once [Thompson 1968]. What has no automaton is refused: back
references, looking around.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

PLAIN = re.compile(r"\^?(\w|[.-]|\\\.)*\$?")
"""Expressions that `re` can match in one way only."""
COUNT = re.compile(r"[*+?]|\{(?P<exactly>\d+)\}|\{(?P<least>\d*),(?P<most>\d*)\}")
GROUP = re.compile(r"\((\?:|\?P<\w+>)?")
CHARACTER = re.compile(r"\\[wWdDsS]|\\[^\w\s]|\[\^?\]?(?:\\.|[^\]\\])*\]|[^\\\[()|*+?{]")
MOST_STATES = 5000
"""States of all automata of an adapter; those of published adapters have a few hundred."""

Matcher: TypeAlias = Callable[[str], bool]
Build: TypeAlias = Callable[["_Automaton", int], int]
"""Add a part of an expression to an automaton after a state; return the state at its end."""


def matchers(patterns: Iterable[str]) -> list[Matcher]:
    """Build, for each expression, a test whether it matches the end of a dotted name, as in PEFT.

    Raises `ValueError` for what is no regular expression, or one that we do not match.
    """
    automaton = _Automaton()
    return [_matcher(pattern, automaton) for pattern in patterns]


def _matcher(pattern: str, automaton: _Automaton) -> Matcher:
    try:
        found = re.compile(rf"(.*\.)?({pattern})$")  # PEFT's words
        if PLAIN.fullmatch(pattern):
            return lambda name: found.match(name) is not None
        build, rest = _either(pattern)
        if rest:
            raise _unmatched(rest)
        start = automaton.state()
        end = build(automaton, start)
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(f"{pattern[:40]!r} is no regular expression: {exc}") from exc
    except ValueError as exc:
        raise ValueError(f"{pattern[:40]!r}: {exc}") from exc
    return lambda name: automaton.leads(start, end, name)


def _unmatched(text: str) -> ValueError:
    return ValueError(f"no way to match {text[:20]!r}, as no back reference or look-around")


class _Automaton:
    """States, and the steps between them."""

    def __init__(self) -> None:
        self._free: list[list[tuple[int, str]]] = []
        self._taking: list[list[tuple[int, re.Pattern[str]]]] = []

    def state(self) -> int:
        """Add a state."""
        if len(self._free) == MOST_STATES:
            raise ValueError(f"the expressions need more than {MOST_STATES} states")
        self._free.append([])
        self._taking.append([])
        return len(self._free) - 1

    def join(self, start: int, end: int | None = None, where: str = "") -> int:
        """Add a step that takes no character; ``where``: only at the start ^ or the end $."""
        end = self.state() if end is None else end
        self._free[start].append((end, where))
        return end

    def take(self, start: int, character: re.Pattern[str]) -> int:
        """Add a step to a new state that takes one character."""
        end = self.state()
        self._taking[start].append((end, character))
        return end

    def leads(self, start: int, end: int, name: str) -> bool:
        """Whether a way from a state to another takes a name, or what follows one of its dots."""
        states: set[int] = set()
        for at in range(len(name) + 1):
            if at == 0 or name[at - 1] == ".":
                states.add(start)
            reached = self._reached(states, at == 0, at == len(name))
            if at == len(name):
                return end in reached
            steps = (step for state in reached for step in self._taking[state])
            states = {target for target, character in steps if character.match(name[at])}
        raise AssertionError("the last position returns")

    def _reached(self, states: Iterable[int], at_start: bool, at_end: bool) -> set[int]:
        allowed = {"": True, "^": at_start, "$": at_end}
        found, open_ = set(states), list(states)
        while open_:
            for target, where in self._free[open_.pop()]:
                if allowed[where] and target not in found:
                    found.add(target)
                    open_.append(target)
        return found


def _either(text: str) -> tuple[Build, str]:
    """Parse alternatives up to the end of a group; return what builds them, and the text left."""
    first, text = _sequence(text)
    choices = [first]
    while text.startswith("|"):
        choice, text = _sequence(text[1:])
        choices.append(choice)

    def build(automaton: _Automaton, start: int) -> int:
        end = automaton.state()
        for choice in choices:
            automaton.join(choice(automaton, start), end)
        return end

    return build, text


def _sequence(text: str) -> tuple[Build, str]:
    parts: list[Build] = []
    while text and text[0] not in "|)":
        part, text = _part(text)
        count = COUNT.match(text)
        if count:
            part, text = _repeated(part, count), text[count.end() :].removeprefix("?")
        parts.append(part)

    def build(automaton: _Automaton, start: int) -> int:
        start = automaton.join(start)
        for part in parts:
            start = part(automaton, start)
        return start

    return build, text


def _part(text: str) -> tuple[Build, str]:
    """Parse a group, an anchor, or an expression of one character."""
    group, character = GROUP.match(text), CHARACTER.match(text)
    if group:
        inner, rest = _either(text[group.end() :])
        return inner, rest.removeprefix(")")
    if text[0] in "^$":
        return (lambda automaton, start: automaton.join(start, where=text[0])), text[1:]
    if character is None:
        raise _unmatched(text)
    one = re.compile(character[0])
    return (lambda automaton, start: automaton.take(start, one)), text[character.end() :]


def _repeated(part: Build, count: re.Match[str]) -> Build:
    least, most = _bounds(count)

    def build(automaton: _Automaton, start: int) -> int:
        for _ in range(least):
            start = part(automaton, start)
        end = automaton.join(start)
        if most is None:
            automaton.join(part(automaton, end), end)
            return end
        for _ in range(most - least):
            start = part(automaton, start)
            automaton.join(start, end)
        return end

    return build


def _bounds(count: re.Match[str]) -> tuple[int, int | None]:
    if count[0][0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[count[0]]
    if count["exactly"]:
        return int(count["exactly"]), int(count["exactly"])
    return int(count["least"] or 0), int(count["most"]) if count["most"] else None
