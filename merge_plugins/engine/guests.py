"""Say whose code failed: an error in a plugin's method names plugin, weight and line."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from merge_plugins.errors import MergeError, PluginError
from merge_plugins.plugins import Method
from merge_plugins.plugins.files import described


@contextmanager
def blaming(method: Method, kernel: Any, doing: str) -> Iterator[None]:
    """Turn an error that came out of a plugin's code into a `PluginError` that says so.

    Errors of our own stay what they are, and so does a lack of memory, which smaller blocks mend.
    """
    try:
        yield
    except (MergeError, torch.OutOfMemoryError):
        raise
    except Exception as exc:
        file = _file(kernel) if method.is_guest else None
        if file is None or not _passed(exc, file):
            raise
        raise PluginError(f"{method} failed {doing}: {described(exc, file)}") from exc


def _file(kernel: Any) -> str | None:
    """Return the file that the traceback of a kernel's code names; None if there is none."""
    call = inspect.unwrap(type(kernel).__call__) if callable(kernel) else None
    code = getattr(call, "__code__", None)
    module = sys.modules.get(type(kernel).__module__)
    found: str | None = code.co_filename if code else getattr(module, "__file__", None)
    return found


def _passed(exc: BaseException, file: str) -> bool:
    return any(frame.filename == file for frame in traceback.extract_tb(exc.__traceback__))
