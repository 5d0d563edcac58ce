"""How the command ends when a signal stops it. A library leaves signals alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from merge_plugins.errors import MergeError


@contextmanager
def interrupts_end_it() -> Iterator[None]:
    """Let an interrupt end the process at once, as it would a program in C.

    For imports, which take seconds: nothing is open yet, and a traceback out of an import explains
    nothing. Leaves the signal to whoever handles it already, such as nohup.
    """
    if not _is_left(signal.SIGINT, signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Turn SIGTERM into `SystemExit`, so that what is half written is removed before the end."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the removal
        raise SystemExit(128 + number)

    if not _is_left(signal.SIGTERM, signal.SIG_DFL):
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_first() -> Iterator[None]:
    """Raise the interrupt, or the exit by SIGTERM, that an error hides.

    Code that a signal stops may fail as it cleans up: tqdm, for one, releases a lock that it has
    not got yet. Whoever stopped a command wants no traceback of that. A `MergeError` has something
    to say, and passes.
    """
    try:
        yield
    except MergeError:
        raise
    except Exception as exc:
        hidden = exc.__context__
        while hidden is not None and not _is_by_signal(hidden):
            hidden = hidden.__context__
        if hidden is None:
            raise
        raise hidden from None


def _is_by_signal(exc: BaseException) -> bool:
    if isinstance(exc, SystemExit):
        return exc.code == 128 + signal.SIGTERM
    return isinstance(exc, KeyboardInterrupt)


@contextmanager
def interrupts_once() -> Iterator[Callable[[], bool]]:
    """Note the first interrupt, for a loop that ends between two steps; let a second one end it.

    Yields what tells whether there was one. Leaves the signal to whoever handles it already.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if not _is_left(signal.SIGINT, signal.default_int_handler):
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_left(number: int, default: object) -> bool:
    """Check that a signal may be handled in this thread, and that nobody handles it."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(number) == default
