"""`merge-plugins mount`: the merge as a folder without weights."""

from __future__ import annotations

import argparse

from merge_plugins import identity
from merge_plugins.commands.recipe import recipe_of
from merge_plugins.outputs.mount import mount


def mount_merge(options: argparse.Namespace) -> int:
    """Write a folder without weights that harnesses load as if it were the saved merge."""
    recipe = recipe_of(options)
    folder = mount(recipe, options.folder, trust_remote_code=options.trust_remote_code)
    print(f"{folder}: {identity.label(recipe)}. Load it with trust_remote_code=True.")
    return 0
