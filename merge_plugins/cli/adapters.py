"""The commands that adapters add by entry point, described without importing an adapter."""

from __future__ import annotations

import ast
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points

from merge_plugins.cli.command import Command

GROUP = "merge_plugins.commands"
"""Entry points in this group are functions that take the words after their name; those that
`takes` decorates have help and completion that run nothing else."""


def commands() -> tuple[Command, ...]:
    """Find the adapters' commands, in the order of their names."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return tuple(described(point) for point in points)


def described(point: EntryPoint) -> Command:
    """Read a function's line of help and its group in the source of its module.

    Adapters import harnesses, which takes seconds and may fail: nothing of theirs runs for a line
    of help. Where there is no source or no docstring, the line is the function's place.
    """
    for node in _parsed(point.module).body:
        if isinstance(node, ast.FunctionDef) and node.name == point.attr:
            summary = (ast.get_docstring(node) or point.value).partition("\n")[0]
            return Command(point.name, summary, point.value, group=_group(node))
    return Command(point.name, point.value, point.value)


def _group(function: ast.FunctionDef) -> str:
    """Find ``group="…"`` in a decorator's call."""
    for node in function.decorator_list:
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            if keyword.arg == "group" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return ""


def _parsed(module: str) -> ast.Module:
    spec = _find(module)
    read = getattr(spec.loader, "get_source", None) if spec else None
    try:
        return ast.parse(read(module) or "" if read else "")
    except (ImportError, OSError, SyntaxError, ValueError):  # its import will say more
        return ast.Module(body=[], type_ignores=[])


def _find(module: str) -> ModuleSpec | None:
    """Find a module as `importlib.util.find_spec` does, which would import its packages."""
    spec, path, name = None, None, ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        finders = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next(filter(None, finders), None)
        path = (spec and spec.submodule_search_locations) or []  # None would be all of sys.path
    return spec
