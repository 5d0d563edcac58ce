"""Errors and the warning that this package raises, as a tree.

MergeError                   anything this package refuses to do
├── RecipeError              the recipe is impossible, which shows before any file is opened
│   ├── UnknownMethodError   no plugin registers that merge method
│   └── ParameterError       a method's parameter is unknown, missing or out of range
├── CheckpointError          a model is missing, damaged, or not a kind we read
├── DataError                calibration data is missing, or a row of it is no example
├── UntrustedCodeError       Python code that came with a model or a task would have to run
└── MismatchError            the models do not fit together: names, shapes, vocabularies
MergeWarning                 a merge goes ahead, but is not what the recipe's words promise
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


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


class DataError(MergeError, ValueError):
    """Calibration data is missing, or a row of it is no example."""


class UntrustedCodeError(MergeError, ValueError):
    """Python code that came with a model or a task would have to run, and nobody allowed it."""


class MismatchError(MergeError, ValueError):
    """The models' tensors do not fit together."""


class MergeWarning(UserWarning):
    """A merge goes ahead, but is not what the recipe's words promise."""


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return str(exc).strip().partition("\n")[0] or type(exc).__name__


def nearest_or_all(given: str, known: Collection[str]) -> str:
    """Return what `did_you_mean` does; if nothing is near, "; there are " and all known words."""
    return did_you_mean(given, known) or f"; there are {', '.join(known)}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
