"""A command: its name, its line of help, its arguments, and where its work is found."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from importlib.metadata import EntryPoint
from typing import Any

from merge_plugins import notice
from merge_plugins.cli.parser import Parser
from merge_plugins.signals import interrupts_end_it

Arguments = Callable[[ArgumentParser], object]
"""Declares the arguments of a command on its parser."""


class Declared:
    """A command's work beside its arguments, so that help and completion find these unrun."""

    def __init__(self, arguments: Arguments, work: Callable[[Namespace], int]) -> None:
        self.arguments, self.work = arguments, work
        update_wrapper(self, work)

    def __call__(self, words: Sequence[str] | None = None) -> int:
        """Parse the words (default: those of this process) and do the work."""
        parser = Parser()
        self.arguments(parser)
        return self.work(parser.read(words))


def takes(
    arguments: Arguments, *, group: str = ""
) -> Callable[[Callable[[Namespace], int]], Declared]:
    """Declare the arguments of a command that an adapter adds, for the entry point of its work.

    ``group``: its heading in the help, read from the source: a literal.
    """
    return partial(Declared, arguments)


@dataclass(frozen=True)
class Command:
    """A command of `merge-plugins`, whose work is imported when its line has been read."""

    name: str
    summary: str
    work: str
    """``module:function``: it takes the parsed arguments and returns the exit status."""
    arguments: Arguments | None = None
    """Declares the arguments. None: an adapter's, which stand beside its work or are its own
    affair; then the function takes the words after the name."""
    group: str = ""
    """Heading in the help."""

    def prepare(self, words: Sequence[str]) -> Callable[[], int]:
        """Parse the words after the command's name and import its work, ready to be called."""
        if self.arguments is not None:  # a mistake shows before the import, which may take seconds
            options = self._read(self.arguments, words)
            return partial(self.load(), options)
        work = self.load()
        if isinstance(work, Declared):
            return partial(work.work, self._read(work.arguments, words))
        return partial(work, words)

    def declare(self, parser: ArgumentParser) -> None:
        """Declare the arguments on a parser, as far as they can be known without the work."""
        work = self.load() if self.arguments is None else None
        arguments = work.arguments if isinstance(work, Declared) else self.arguments
        if arguments is not None:
            arguments(parser)

    def load(self) -> Callable[[Any], int]:
        """Import the function that does the work."""
        with interrupts_end_it():
            function: Callable[[Any], int] = EntryPoint(self.name, self.work, "").load()
        return function

    def _read(self, arguments: Arguments, words: Sequence[str]) -> Namespace:
        """Parse the words, and be as quiet or verbose as they ask."""
        parser = Parser(prog=f"merge-plugins {self.name}", description=self.summary)
        arguments(parser)
        options = parser.read(words)
        given = vars(options)
        notice.be(quiet=given.get("quiet", False), verbose=given.get("verbose", False))
        return options
