"""Run Python files that a user names: a plugin that is not packaged, a function of a search.

Only a command line or a call names such a file. A recipe cannot: it may come from anywhere.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from merge_plugins.errors import MergeError, PluginError
from merge_plugins.plugins.registry import PluginFile, registry

KNOWN_AS = "file"
"""Name of every such plugin in digests, which depend on its content, not on what it is called."""


def load_plugin(file: str | os.PathLike[str]) -> None:
    """Register the methods and statistics of a Python file, for as long as this process runs.

    Runs the file. If it was loaded before and has changed, what it registers now replaces what it
    registered then. Digests of its merges depend on its content, and not on what it imports. Raises
    `PluginError` where it fails or registers nothing.
    """
    path = found(file)
    source = path.read_bytes()
    plugin = PluginFile(path, source, hashlib.sha256(source).hexdigest()[:12])
    known = registry()
    if any(other.version == plugin.version for other in known.files.values()):
        return
    label = path.name
    if label in known.files:
        if known.files[label].path != path:
            raise PluginError(
                f"{path}: another {label} is loaded, {known.files[label].path}; rename one of them"
            )
        known.unload(label)
    known.load(label, plugin.version, lambda: run(path, source), known_as=KNOWN_AS)
    failed = known.broken.pop(label, None)
    if isinstance(failed, MergeError):
        raise failed
    if failed is not None:
        raise PluginError(f"{path} is no plugin: {failed}") from failed
    known.files[label] = plugin
    if not known.of_plugin(label):
        known.unload(label)
        raise PluginError(
            f"{path} registers no merge method; it needs a function register_merge_methods under "
            "@hookimpl. 'merge-plugins new-method NAME' writes an example"
        )


def load_plugins(files: Iterable[str | os.PathLike[str]]) -> None:
    """Register what several files register, in the order given: see `load_plugin`."""
    for file in files:
        load_plugin(file)


def found(file: str | os.PathLike[str]) -> Path:
    """Find a Python file, or raise `PluginError`; the path is absolute."""
    path = Path(os.path.expanduser(file)).absolute()  # noqa: PTH111  # Path raises for ~nobody
    try:
        is_file = path.is_file()
    except OSError:  # too long a name
        is_file = False
    if not is_file:
        raise PluginError(f"no plugin at {path}; name a Python file")
    if path.suffix != ".py":
        raise PluginError(f"{path} is no Python file; a plugin's name ends with .py")
    return path.resolve()


def run(path: Path, source: bytes, *, beside: bool = False) -> ModuleType:
    """Run the source of a Python file as a module of its own; raise `PluginError` where it fails.

    ``beside``: whether what lies in its folder can be imported, as when it is run by Python.
    """
    module = ModuleType(f"_{path.stem}_{hashlib.sha256(source).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and type hints look names up
    if beside and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as exc:  # a guest may fail in any way
        raise PluginError(f"{path} failed: {described(exc, str(path))}") from exc
    return module


def described(exc: BaseException, file: str) -> str:
    """Describe an error in a file in one line: its class and message, and the file's line."""
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__)
             if frame.filename == file]  # fmt: skip
    where = f" ({Path(file).name}, line {lines[-1]})" if lines else ""
    return f"{type(exc).__name__}: {exc}".rstrip(": ") + where
