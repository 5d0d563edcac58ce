"""Read the words after a command's name; suggest the option that was meant."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import NoReturn

from merge_plugins.errors import did_you_mean


class Parser(ArgumentParser):
    """An `ArgumentParser` that suggests the option that was meant."""

    _words: Sequence[str] = ()

    def read(self, words: Sequence[str] | None = None) -> Namespace:
        """Parse the words (default: those of this process), or end it with a message."""
        self._words = sys.argv[1:] if words is None else words
        return self.parse_args(self._words)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2; an unknown option comes before whatever it led to."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in self._words:
            if word == "--":
                break
            name = word.partition("=")[0]
            if word.startswith("-") and not _is_known(name, known):
                near = did_you_mean(name, known) or "."
                help_ = f"Run '{self.prog} --help' to see them."
                self.exit(2, f"{self.prog}: no option {name!r}{near} {help_}\n")
        super().error(message)


def _is_known(name: str, options: Sequence[str]) -> bool:
    """Whether argparse takes a word for an option: in full, shortened, or with a value behind it.

    A lone dash and a negative number are none.
    """
    is_none = name == "-" or name[1:2].isdigit() or name[1:2] == "."
    return is_none or any(
        option.startswith(name) or (len(option) == 2 and name.startswith(option))
        for option in options
    )
