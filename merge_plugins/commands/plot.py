"""The option ``--plot FILE`` of commands that draw what they found."""

from __future__ import annotations

from pathlib import Path

from merge_plugins.errors import MergeError
from merge_plugins.installing import to_install


def check_plot(file: Path) -> None:
    """Raise `MergeError` for a file that cannot be drawn, before the work that is to be drawn."""
    try:
        from merge_plugins.drawing import check
    except ImportError as exc:
        raise MergeError(f"--plot needs matplotlib: {to_install('report')}") from exc
    check(file)
