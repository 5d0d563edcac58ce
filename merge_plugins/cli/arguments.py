"""Arguments that several commands take, those of adapters too."""

from __future__ import annotations

from argparse import ArgumentParser

PLUGIN = "run a Python file for the methods that it registers; once for each file"


def add_plugin(parser: ArgumentParser) -> None:
    """Add ``--plugin FILE``, for `merge_plugins.plugins.load_plugins`."""
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE.py", help=PLUGIN)


def add_loudness(parser: ArgumentParser) -> None:
    """Add ``--quiet`` and ``--verbose``, which every command obeys that has them."""
    each = parser.add_mutually_exclusive_group()
    quiet = "no line on what it costs, no progress: only results and errors"
    each.add_argument("-q", "--quiet", action="store_true", help=quiet)
    verbose = "also what the engine logs as it works"
    each.add_argument("-v", "--verbose", action="store_true", help=verbose)
