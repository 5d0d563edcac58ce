"""Give a merge to a harness that loads checkpoints by path: a recipe folder, and a name for it."""

from __future__ import annotations

import atexit
import functools
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from merge_plugins.identity import digest
from merge_plugins.outputs.mount import mount
from merge_plugins.outputs.recipe_folder import is_mounted, mounted_recipe
from merge_plugins.recipe import Recipe, files, read_recipe


class Mounted(NamedTuple):
    """A merge as a harness loads it."""

    title: str
    """Name of the recipe's file, of its folder or of its method."""
    digest: str
    folder: Path
    """A recipe folder, to be loaded with ``trust_remote_code=True``; has our few lines of code."""

    @property
    def name(self) -> str:
        """Name under which a harness may keep results: no other merge has it."""
        return f"{self.title}-{self.digest}"


def mounted(given: str, *, trust_remote_code: bool = False) -> Mounted:
    """Write the recipe folder of a merge, for as long as this process runs.

    ``given``: a recipe file, a folder with one, or the short form. A folder that ``merge-plugins
    mount`` wrote is used where it lies. ``trust_remote_code``: whether code of the models may run.
    Raises `MergeError` before any weight is read when the recipe does not fit its models.
    """
    path = None if files.is_short_form(given) else files.path_of(given, ".")
    if path is not None and is_mounted(path):
        recipe = mounted_recipe(path, plugins=trust_remote_code)
        return Mounted(_title(path), digest(recipe), path)
    recipe = read_recipe(given).trusting(trust_remote_code)
    title = recipe.merge_method if path is None else _title(path)
    found = digest(recipe)
    return Mounted(title, found, _written(recipe, found, trust_remote_code))


def _title(path: Path) -> str:
    """Name a merge after its recipe, without characters that harnesses give a meaning to."""
    return re.sub(r"[^\w.+-]", "_", path.stem if path.is_file() else path.name, flags=re.ASCII)


@functools.cache
def _written(recipe: Recipe, found: str, trust_remote_code: bool) -> Path:
    """Mount a recipe once; a merge whose files change has another digest."""
    folder = Path(tempfile.mkdtemp(dir=_root())) / found
    return mount(recipe, folder, trust_remote_code=trust_remote_code)


@functools.cache
def _root() -> str:
    root = tempfile.TemporaryDirectory(prefix="merge-plugins-")
    atexit.register(root.cleanup)
    return root.name
