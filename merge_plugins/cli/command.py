"""A command: its name, its line of help, its arguments, and where its work is found."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any

from merge_plugins.signals import interrupts_end_it


@dataclass(frozen=True)
class Command:
    """A command of `merge-plugins`, whose work is imported when its line has been read."""

    name: str
    summary: str
    work: str
    """``module:function``: it takes the parsed arguments and returns the exit status."""
    arguments: Callable[[ArgumentParser], object] | None = None
    """Declares the arguments. None: the function takes the words after the name, and parses."""

    def prepare(self, words: Sequence[str]) -> Callable[[], int]:
        """Parse the words after the command's name and import its work, ready to be called."""
        if self.arguments is None:
            return partial(self._load(), words)
        parser = ArgumentParser(prog=f"merge-plugins {self.name}", description=self.summary)
        self.arguments(parser)
        options = parser.parse_args(words)
        return partial(self._load(), options)

    def _load(self) -> Callable[[Any], int]:
        with interrupts_end_it():
            function: Callable[[Any], int] = EntryPoint(self.name, self.work, "").load()
        return function
