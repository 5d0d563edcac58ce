"""Say what a written merge needs beside this package, and carry it where the folder may hold code.

A mounted folder has a copy of each plugin that is a single file, as code comes with a model: it
runs where whoever loads the folder allows that. A saved checkpoint needs no plugin to be loaded;
its card and recipe say which one merges it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from merge_plugins.errors import UntrustedCodeError
from merge_plugins.plugins import load_plugin, registry
from merge_plugins.plugins.files import KNOWN_AS
from merge_plugins.recipe import Recipe
from merge_plugins.recipe.guests import guests

FOLDER = "plugins"
"""Where a mounted folder has the plugins that it carries."""


def needs(recipe: Recipe) -> list[dict[str, str]]:
    """List the methods of a merge that this package has not, each with its plugin and version."""
    return [
        {"method": method.name, "plugin": method.plugin, "version": method.version}
        | ({"known_as": KNOWN_AS} if method.known_as == KNOWN_AS else {})
        for method in guests(recipe)
    ]


def said(recipe: Recipe, *, carried: bool) -> list[str]:
    """Say in sentences which plugins make a merge; ``carried``: whether files are in the folder."""
    found = []
    for need in needs(recipe):
        name, plugin, version = need["method"], need["plugin"], need["version"]
        if not is_file(need):
            found.append(f"The method {name} is registered by the plugin {plugin} {version}.")
        elif carried:
            found.append(f"The method {name} is in {FOLDER}/{plugin}, code that came with it.")
        else:
            found.append(
                f"The method {name} is in a file that is not published here: {plugin}, whose "
                f"SHA-256 begins with {version}."
            )
    return found


def is_file(need: Mapping[str, str]) -> bool:
    """Whether a plugin is a single file, and no installed package."""
    return need.get("known_as") == KNOWN_AS


def carry(recipe: Recipe, folder: Path) -> None:
    """Copy each plugin of a merge that is a single file, as it ran."""
    for need in filter(is_file, needs(recipe)):
        (folder / FOLDER).mkdir(exist_ok=True)
        (folder / FOLDER / need["plugin"]).write_bytes(registry().files[need["plugin"]].source)


def carried(listed: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the paths, in a mounted folder, of the plugins that it carries."""
    names = (PurePath(need["plugin"]).name for need in listed if is_file(need))
    return [f"{FOLDER}/{name}" for name in dict.fromkeys(names)]


def load_carried(folder: Path, listed: Iterable[Mapping[str, Any]], trust: bool) -> None:
    """Load the plugins that a mounted folder carries, or raise `UntrustedCodeError`."""
    for path in carried(need for need in listed if not _is_loaded(need)):
        if not trust:
            raise UntrustedCodeError(
                f"{folder}: its method is in {path}, Python code that came with the folder. If you "
                f"trust it, pass --trust-remote-code (trust_remote_code=True)"
            )
        load_plugin(folder / path)


def _is_loaded(need: Mapping[str, Any]) -> bool:
    """Whether a plugin's file was loaded by whoever runs this process."""
    return any(plugin.version == need.get("version") for plugin in registry().files.values())
