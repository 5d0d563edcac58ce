"""Arguments that several commands take, those of adapters too."""

from __future__ import annotations

from argparse import ArgumentParser

PLUGIN = "run a Python file for the methods that it registers; once for each file"


def add_plugin(parser: ArgumentParser) -> None:
    """Add ``--plugin FILE``, for `merge_plugins.plugins.load_plugins`."""
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE.py", help=PLUGIN)
