"""Run one command, and describe them all."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from textwrap import TextWrapper

from merge_plugins._version import __version__
from merge_plugins.cli import adapters
from merge_plugins.cli.command import Command
from merge_plugins.cli.own import GROUPS
from merge_plugins.cli.parser import Parser
from merge_plugins.errors import MergeError, did_you_mean, report
from merge_plugins.notice import restored
from merge_plugins.signals import signals_first, terminated_as_exit

UNGROUPED = "from other packages"
"""Heading of commands whose adapters name none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 1 when the recipe cannot be merged."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        with restored():
            run = _prepare(given)
            with terminated_as_exit(), signals_first():
                return run()
    except MergeError as exc:
        return report(exc)
    except BrokenPipeError:  # `merge-plugins plan … | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("merge-plugins: interrupted", file=sys.stderr)
        return 130


def _prepare(given: Sequence[str]) -> Callable[[], int]:
    """Return the command of a line, ready to be called; help and errors end here."""
    groups = commands()
    known = {command.name: command for group in groups.values() for command in group}
    if "_ARGCOMPLETE" in os.environ:
        from merge_plugins.cli.completion import complete

        complete(_parser(groups), known)
    if given and given[0] in known:
        return known[given[0]].prepare(given[1:])
    parser = _parser(groups)
    if not given:
        parser.print_help(sys.stderr)
    elif given[0].startswith("-"):
        parser.read(given)
    else:
        near = did_you_mean(given[0], known) or "."
        parser.exit(2, f"merge-plugins: no command {given[0]!r}{near} "
                    "Run 'merge-plugins --help' to see them.\n")  # fmt: skip
    raise SystemExit(2)


def commands() -> Mapping[str, Sequence[Command]]:
    """Find all commands under their headings, ours first; an adapter takes no name of ours."""
    groups = {title: [*own] for title, own in GROUPS.items()}
    names = {command.name for own in GROUPS.values() for command in own}
    for command in adapters.commands():
        if command.name not in names:
            groups.setdefault(command.group or UNGROUPED, []).append(command)
    groups[UNGROUPED] = groups.pop(UNGROUPED, [])  # last
    return {title: group for title, group in groups.items() if group}


def _parser(groups: Mapping[str, Sequence[Command]]) -> Parser:
    parser = Parser(
        prog="merge-plugins",
        usage="merge-plugins [-h] [--version] COMMAND ...",
        description="Merge language models on the fly.",
        epilog=_table(groups),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _table(groups: Mapping[str, Sequence[Command]]) -> str:
    """Write a line for each command, under the headings of their groups."""
    width = max(len(command.name) for group in groups.values() for command in group)
    columns = max(shutil.get_terminal_size().columns - 2, width + 24)
    fill = TextWrapper(columns, subsequent_indent=" " * (width + 4))
    blocks = [
        "\n".join(
            [f"{title}:", *(fill.fill(f"  {one.name:{width}}  {one.summary}") for one in group)]
        )
        for title, group in groups.items()
    ]
    return "\n\n".join([*blocks, "'merge-plugins COMMAND --help' explains a command."])
