"""Complete a line of the command for a shell: what `merge-plugins completion` sets up asks here."""

from __future__ import annotations

import os
import shlex
from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint

from merge_plugins.cli.command import Command
from merge_plugins.cli.parser import Parser


def complete(parser: Parser, commands: Mapping[str, Command]) -> None:
    """Answer the shell that asks, and end the process.

    ``parser``: that of the whole line, to which the commands are added. Only the command that the
    line names declares its arguments: an adapter's module is imported for that, its work is not
    done.
    """
    import argcomplete

    words = _words(os.environ.get("COMP_LINE", ""))
    choices = parser.add_subparsers(parser_class=Parser)
    for name, command in commands.items():
        own = choices.add_parser(name, help=command.summary)
        if words[1:2] == [name]:
            command.declare(own)
    argcomplete.autocomplete(parser, always_complete_options=False)


def _words(line: str) -> Sequence[str]:
    try:
        return shlex.split(line)
    except ValueError:  # within quotes
        return line.split()


def completed_by(action: Action, place: str) -> None:
    """Let a shell complete an argument with the words of a function, ``module:function``."""

    def words(**_: object) -> Sequence[str]:
        find: Callable[[], Sequence[str]] = EntryPoint(action.dest, place, "").load()
        return find()

    action.completer = words  # type: ignore[attr-defined]  # where argcomplete looks for it
