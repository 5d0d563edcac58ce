"""`python -m merge_plugins`, and the `merge-plugins` command."""

import io
import signal
import sys

from merge_plugins.signals import interrupts_end_it


def main() -> int:
    """Run the command line of this process and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file on Windows takes 256 characters
        sys.stdout.reconfigure(errors="backslashreplace")
    with interrupts_end_it():
        from merge_plugins.cli import main as run

    try:
        return run()
    finally:  # what the interpreter still tears down is nothing to explain either
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
