"""Change one thing, or a few, in a tree of plain values or in a text: input for fuzz tests."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


STRANGE: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1.5, 1e308, 10**12, 10**30, 10**400),
    *(float("inf"), float("-inf"), float("nan"), 1 + 2j, b"bytes", {"a", "b"}),
    *(datetime.date(2024, 1, 1), (), [], {}, [[]], [None], {"": None}, {None: 1}, {1: 2}),
    *(
        "",
        " ",
        "0",
        "1e400",
        "-1",
        "nan",
        "None",
        "null",
        "true",
        "[",
        "{",
        "[1, 2",
        "{a: b}",
        "[a",
    ),
    *("a\0b", "\ud800", "é" * 200, "x" * 300, "x/" * 2500, "~", "~nobody/x", ".", "..", "/", "//"),
    *(
        "/etc/passwd",
        "/dev/zero",
        "*",
        "+",
        "++",
        "a+",
        "+a",
        "a++b++c",
        "@",
        "a@",
        "a@b@c",
        ":",
        "a:",
    ),
    *("base", "union", "auto", "default", "zero", "layers", "weight", "self_attn", "task"),
    *("linear", "ties", "dare_ties", "passthrough", "slerp", "fisher_merging", "emr"),
    *([1, 2, 3], ["a", "b"], [0, 1], [1, 0], [-1, 1], [0, 10**9], [{"filter": "a", "value": 1}]),
    *({"filter": "x", "value": [0, 1]}, {"value": {"value": 1}}, {"kind": "zero"}, {"model": "a"}),
    *(
        nested(60),
        nested(300),
        list(range(1000)),
        "a: b",
        "- a",
        "&a",
        "*a",
        "!!int x",
        "2024-99-99",
    ),
)
"""Values that stand where others were meant."""


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a tree stands, its own root first."""
    yield path
    if len(path) > 20:
        return
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from paths(value, (*path, key))


def mutated(tree: Any, random: Random, words: Sequence[Any] = (), n: int = 3) -> Any:
    """Copy a tree with up to ``n`` changes; ``words``: keys and values that mean something."""

    def drawn(values: Sequence[Any]) -> Any:
        return copy.deepcopy(random.choice(values))

    tree = copy.deepcopy(tree)
    for _ in range(min(random.randint(1, n), random.randint(1, n))):
        places = [path for path in paths(tree) if path]
        if not places:
            return drawn([*STRANGE, *words])
        *above, key = random.choice(places)
        holder = tree
        for step in above:
            holder = holder[step]
        change = random.randrange(6)
        if change == 0:
            del holder[key]
        elif change == 1:
            holder[key] = [holder[key]] * random.choice((1, 2, 5))
        elif change == 2 and isinstance(holder, dict):
            holder[drawn(words or ("x",))] = drawn([*STRANGE, *words])
        elif change == 3 and isinstance(holder, dict):
            holder[drawn(words or ("x",))] = holder.pop(key)
        else:
            holder[key] = drawn(words if words and change == 4 else STRANGE)
    return tree


SNIPPETS = (
    *(
        "&a ",
        "*a",
        "<<: *a\n",
        "!!int ",
        "!!set ",
        "!!binary ",
        "!!python/object:os.system ",
        "---\n",
    ),
    *("...\n", "? ", "| ", "> ", "[", "]", "{", "}", "'", '"', "#", "%", "@", "\t", "\0", "\ufeff"),
    *(
        "\\ud800",
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        "0x",
        "0b_",
        "1_0:9",
        "1e999",
        ".inf",
        ".nan",
        "=",
        "~",
    ),
    *(
        "2001-99-99",
        "2001-01-01",
        "9" * 5000,
        "[" * 300,
        "{" * 1500,
        "- " * 200,
        ": ",
        ",",
        "\n",
        " ",
    ),
)
"""Pieces of text that mean something in YAML or JSON."""


def mutated_text(text: str, random: Random, n: int = 3) -> str:
    """Change a text in up to ``n`` places: cut, double, move, or put a snippet in."""
    for _ in range(min(random.randint(1, n), random.randint(1, n))):
        a, b = sorted(random.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + random.choice((1, 5, 40)))
        text = random.choice(
            (
                text[:a] + text[b:],
                text[:b] + text[a:],
                text[:a] + random.choice(SNIPPETS) + text[random.choice((a, b)) :],
                text[:a] + chr(random.randrange(0x100)) + text[b:],
            )
        )
    return text
