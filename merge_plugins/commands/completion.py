"""`merge-plugins completion`: let a shell complete commands, options, methods and files."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from merge_plugins._version import __version__
from merge_plugins.folders import cache_folder, write_whole

POINTS = ("merge_plugins", "merge_plugins.bridges")
"""Groups of entry points that register methods."""


def print_code(options: argparse.Namespace) -> int:
    """Print what a shell runs at its start so that it completes our command."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["merge-plugins"], shell=options.shell))
    return 0


def method_names() -> Sequence[str]:
    """Name the merge methods of every plugin: as they are remembered, or by loading them all.

    Loading imports torch, which takes seconds; the next time asks for none of it.
    """
    with suppress(OSError, ValueError):
        names: Sequence[str] = json.loads(_file().read_text(encoding="utf-8"))
        return names
    from merge_plugins.plugins import registry

    return remember(registry().named)


def remember(names: Iterable[str]) -> Sequence[str]:
    """Keep the names of the methods for completion, until other plugins are installed."""
    kept = sorted(names)
    with suppress(OSError):  # a cache: without it, completion is slow
        write_whole(_file(), json.dumps(kept))
    return kept


def _file() -> Path:
    """Return the file of names for the plugins that are installed, by their versions."""
    points = [point for group in POINTS for point in entry_points(group=group)]
    installed = sorted(
        (point.name, point.value, point.dist.version if point.dist else "") for point in points
    )
    key = hashlib.sha256(json.dumps([__version__, *installed]).encode()).hexdigest()[:16]
    return cache_folder() / f"methods-{key}.json"
