"""Write a value of a parameter for people to read."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> str:
    """Write a value in one line, as a recipe may give it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() or "''"
