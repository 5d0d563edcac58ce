"""Errors and the warning that this package raises, as a tree.

MergeError                   anything this package refuses to do
├── RecipeError              the recipe is impossible, which shows before any file is opened
│   ├── UnknownMethodError   no plugin registers that merge method
│   └── ParameterError       a method's parameter is unknown, missing or out of range
├── CheckpointError          a model is missing, damaged, or not a kind we read
│   └── NoModelError         no folder here has that name, and nothing on the hub
├── DataError                calibration data is missing, or a row of it is no example
├── UntrustedCodeError       Python code that came with a model or a task would have to run
├── PluginError              a plugin's code failed, or is no plugin
└── MismatchError            the models do not fit together: names, shapes, vocabularies
MergeWarning                 a merge goes ahead, but is not what the recipe's words promise
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Collection, Iterable
from pathlib import Path


class MergeError(Exception):
    """Base of every error this package raises on purpose."""


class RecipeError(MergeError, ValueError):
    """The recipe cannot mean anything: unknown key, wrong type, contradiction."""


class UnknownMethodError(RecipeError, LookupError):
    """No plugin registers this merge method."""


class ParameterError(RecipeError):
    """A parameter of a merge method is unknown, missing, or outside its range."""


class CheckpointError(MergeError, OSError):
    """A model's files are missing, damaged, or of a kind we refuse to read."""


class NoModelError(CheckpointError):
    """No folder of this machine has a model's name, and nothing on the hub."""


class DataError(MergeError, ValueError):
    """Calibration data is missing, or a row of it is no example."""


class UntrustedCodeError(MergeError, ValueError):
    """Python code that came with a model or a task would have to run, and nobody allowed it."""


class PluginError(MergeError):
    """The code of a plugin failed, or is none of a plugin."""


class MismatchError(MergeError, ValueError):
    """The models' tensors do not fit together."""


class MergeWarning(UserWarning):
    """A merge goes ahead, but is not what the recipe's words promise."""


TRACEBACK = "MERGE_PLUGINS_TRACEBACK"
"""Environment variable: with a value, commands show where an error was raised, too."""


def wants_traceback() -> bool:
    """Whether whoever runs this command wants to see where errors are raised."""
    return bool(os.environ.get(TRACEBACK))


def report(exc: MergeError) -> int:
    """Write the error that ends a command to stderr, its message last; return the exit status."""
    if wants_traceback():
        traceback.print_exception(exc)
    sys.stderr.write(f"merge-plugins: {exc}\n")
    return 1


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return str(exc).strip().partition("\n")[0] or type(exc).__name__


def nearest_or_all(given: str, known: Collection[str]) -> str:
    """Return what `did_you_mean` does; if nothing is near, "; there are " and all known words."""
    return did_you_mean(given, known) or f"; there are {', '.join(known)}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty string."""
    near = nearest(given, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the known word that is spelled most like ``given``; None if none is near.

    Capitals count for nothing, and a hyphen or a space is an underscore.
    """
    words = {_plain(word): word for word in reversed([*known])}
    close = difflib.get_close_matches(_plain(given), words, n=1, cutoff=0.6)
    return words[close[0]] if close else None


def _plain(word: str) -> str:
    return word.casefold().replace("-", "_").replace(" ", "_")


def did_you_mean_path(path: Path) -> str:
    """Return "; did you mean 'a/b'?" for the existing path nearest to a missing one, or ""."""
    near = _nearest_path(path)
    return "" if near is None else f"; did you mean {str(near)!r}?"


def _nearest_path(path: Path) -> Path | None:
    """Return the existing path that is spelled most like a missing one; None if none is near.

    Only the first part that does not exist is taken for misspelled.
    """
    parts = [path, *path.parents]
    missing = [part for part in parts if not part.exists()]
    if not missing or len(missing) == len(parts):
        return None
    wrong = missing[-1]
    try:
        near = nearest(wrong.name, sorted(entry.name for entry in wrong.parent.iterdir()))
    except OSError:  # a file, or a folder of somebody else's
        return None
    found = near and wrong.with_name(near) / path.relative_to(wrong)
    return found if found and found.exists() else None
