"""The recipe of a command that writes a merge."""

from __future__ import annotations

import argparse

from merge_plugins.recipe import Recipe, read_recipe


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Read the recipe that is named, as the options beside it change it."""
    recipe = read_recipe(options.recipe).trusting(options.trust_remote_code)
    recipe = recipe if options.task is None else recipe.for_task(options.task)
    return recipe.compiling(options.compile or recipe.compile)
