"""How wide a line may be."""

from __future__ import annotations

import shutil

WIDEST = 100
"""Lines are read by people: no longer than this on any terminal."""


def columns() -> int:
    """Return the width of the terminal, 100 at most; 80 where there is none."""
    return max(min(shutil.get_terminal_size().columns, WIDEST), 40)
