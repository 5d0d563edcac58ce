"""`python -m merge_plugins`, and the `merge-plugins` command.

The command's own file imports torch, which takes seconds. An interrupt in that time, or after the
command's end, stops the process at once, as it would a program in C: nothing is open yet, and a
traceback out of an import explains nothing.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> int:
    """Run the command line of this process and return its exit status."""
    with _interrupts_end_it():
        from merge_plugins.cli import main as run

    try:
        return run()
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _interrupts_end_it() -> Iterator[None]:
    """Let an interrupt end the process without an exception, unless somebody else handles it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # such as nohup
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
