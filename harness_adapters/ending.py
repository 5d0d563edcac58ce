"""End a command after a `MergeError` with its message: ours, and those of harnesses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from traceback import walk_tb
from types import TracebackType
from typing import TypeAlias

from merge_plugins.errors import MergeError, report, wants_traceback
from merge_plugins.signals import signals_first

Hook: TypeAlias = Callable[[type[BaseException], BaseException, TracebackType | None], object]
_commands: set[str] = set()
"""Modules with the commands of harnesses that end with the message."""


def exit_status(run: Callable[[], int]) -> int:
    """Run a command of ours; report a `MergeError` in place of a traceback."""
    try:
        with signals_first():
            return run()
    except MergeError as exc:
        return report(exc)
    except KeyboardInterrupt:
        sys.stderr.write("merge-plugins: interrupted\n")
        return 130


def end_with_the_message(command: str) -> None:
    """Have Python report a `MergeError` that ends a harness's command, without a traceback.

    ``command``: the module of the harness that its command runs. Nothing else changes: the error
    passes through the harness as it did, the exit status is 1, and a script that calls the harness
    as a library gets its traceback.
    """
    if not _commands:
        sys.excepthook = partial(_show, sys.excepthook)
    _commands.add(command)


def _show(
    before: Hook, kind: type[BaseException], exc: BaseException, traceback: TracebackType | None
) -> None:
    """Show an error that nobody caught, as ``sys.excepthook``."""
    if isinstance(exc, MergeError) and not wants_traceback() and _ends_a_command(traceback):
        report(exc)
    else:
        before(kind, exc, traceback)


def _ends_a_command(traceback: TracebackType | None) -> bool:
    """Whether an error came up through a harness's command, also one that ``python -m`` runs."""
    specs = (frame.f_globals.get("__spec__") for frame, _ in walk_tb(traceback))
    return any(spec is not None and spec.name in _commands for spec in specs)
