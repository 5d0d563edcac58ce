"""Find and read recipe folders, and detect that the merge of one has changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from merge_plugins._version import __version__
from merge_plugins.errors import CheckpointError, MismatchError, UnknownMethodError
from merge_plugins.identity import digest, model_identity
from merge_plugins.outputs.needs import carried, is_file, load_carried, needs
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, files
from merge_plugins.weights.files import read_json

KEY = "merge_plugins"
"""Key of the merge's signature in a mounted ``config.json``."""
PLUGINS = "plugins"
"""Key, in the signature, of the plugins that the merge needs, if any."""


def signature(recipe: Recipe) -> dict[str, Any]:
    """Collect version, digest, method and sources of a merge, to detect later changes."""
    method = registry().get(recipe.merge_method)
    made = {
        "version": __version__,
        "digest": digest(recipe),
        "method": [method.known_as, method.version or __version__],
        "sources": [model_identity(ref) for ref in recipe.references],
    }
    return {**made, PLUGINS: needs(recipe)} if needs(recipe) else made


def recipe_folder(name: str | os.PathLike[str], **where: Any) -> Path:
    """Find a recipe folder, local or on the hub; `OSError` of transformers if it is none.

    ``where``: arguments of `transformers.utils.hub.cached_file`, such as ``revision``.
    """
    folder = Path(str(cached_file(name, files.NAME, **where))).parent
    for file in carried(_plugins(folder)) if is_mounted(folder) else ():
        cached_file(name, file, **where)
    return folder


def engines_recipe(name: str, trusted: bool, **where: Any) -> Recipe | None:
    """Read the recipe of an engine's model; None if that is no recipe folder, here or on the hub.

    ``trusted``: whether the engine runs code that comes with a model. ``where``: see
    `recipe_folder`.
    """
    try:
        folder = recipe_folder(name, **where)
    except OSError:  # no such model, or no recipe in it
        return None
    return mounted_recipe(folder, trusted, plugins=trusted)


def is_mounted(path: Path) -> bool:
    """Check whether a path is a folder that `mount` wrote."""
    config = path / "config.json"
    return (path / files.NAME).is_file() and config.is_file() and KEY in read_json(config)


def mounted_recipe(
    folder: Path, trust_remote_code: bool = True, *, plugins: bool = False
) -> Recipe:
    """Read the recipe of a recipe folder, trusting code if `mount` was told to.

    ``trust_remote_code``: whether whoever loads it trusts that too. ``plugins``: whether whoever
    loads it has allowed code that is in the folder, as a plugin may be. Raises `MismatchError` if
    its merge has changed since the folder was written: a harness that identifies the folder by its
    name would report the scores of one merge for the other.
    """
    trusted = trust_remote_code and trusts_code(folder)
    load_carried(folder, _plugins(folder), plugins)
    try:
        recipe = Recipe.load(folder).trusting(trusted)
    except UnknownMethodError as exc:
        raise UnknownMethodError(f"{exc}{_missing(folder)}") from exc
    refuse_changes(recipe, folder)
    return recipe


def _plugins(folder: Path) -> list[Mapping[str, str]]:
    """List the plugins that a folder's merge needs, as `needs` lists them."""
    listed = read_json(folder / "config.json").get(KEY, {})
    given = listed.get(PLUGINS) if isinstance(listed, Mapping) else None
    return [
        each
        for each in (given if isinstance(given, list) else ())
        if isinstance(each, Mapping) and isinstance(each.get("plugin"), str)
    ]


def _missing(folder: Path) -> str:
    """Name the packages that a folder was mounted with and that may be missing here."""
    packages = [f"{n['plugin']} {n.get('version')}" for n in _plugins(folder) if not is_file(n)]
    return f" The folder was mounted with {', '.join(packages)}." if packages else ""


def trusts_code(folder: Path) -> bool:
    """Whether a recipe folder was mounted with ``trust_remote_code``."""
    return _made(folder).get("trust_remote_code") is True


def _made(folder: Path) -> Mapping[str, Any]:
    """Read what `mount` wrote down of a merge."""
    made = read_json(folder / "config.json").get(KEY)
    if not isinstance(made, Mapping) or not {"digest", "method", "sources"} <= made.keys():
        raise CheckpointError(
            f"{folder / 'config.json'} does not say what the merge was; mount the recipe again: "
            f"merge-plugins mount {folder / 'merge.yaml'} NEW_DIR"
        )
    return made


def refuse_changes(recipe: Recipe, folder: Path) -> None:
    """Raise `MismatchError` if a recipe folder's merge is not what it was when it was mounted."""
    made = _made(folder)
    if digest(recipe) == made["digest"]:
        return
    now = signature(recipe)
    pairs = zip(recipe.references, made["sources"], now["sources"], strict=False)
    changed = [str(ref) for ref, before, after in pairs if before != after]
    if len(now["sources"]) != len(made["sources"]):
        why = "merge.yaml names other models"
    elif changed:
        why = f"{', '.join(changed)} changed"
    elif now["method"] != made["method"]:
        why = f"it was made with {' '.join(made['method'])}, here is {' '.join(now['method'])}"
    else:
        why = "merge.yaml, its data or a tokenizer changed"
    raise MismatchError(
        f"{folder} is no longer the merge it was: {why}. Its digest was {made['digest']}, now "
        f"{now['digest']}. To use the merge as it is now, mount it under another name: "
        f"merge-plugins mount {folder / 'merge.yaml'} NEW_DIR"
    )
