"""Packages that some folders of tests are about, most in an environment of their own."""

from __future__ import annotations

import os
from importlib import import_module

import pytest


def need(module: str, variable: str) -> None:
    """Skip where a package is not installed, unless a variable of the environment requires it.

    What is there and cannot be imported is an error. ``module``: one inside of the package, whose
    name alone may be a folder of these tests.
    """
    if os.environ.get(variable):
        import_module(module)
    else:
        pytest.importorskip(module, exc_type=ModuleNotFoundError)
