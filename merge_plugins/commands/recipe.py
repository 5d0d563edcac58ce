"""The recipe of a command."""

from __future__ import annotations

import argparse

from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import Recipe, read_recipe


def given_recipe(options: argparse.Namespace) -> Recipe:
    """Read the recipe that is named, with the methods of the plugins that are."""
    load_plugins(options.plugin)
    return read_recipe(options.recipe)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Read the recipe that is named, as the options beside it change it."""
    recipe = given_recipe(options).trusting(options.trust_remote_code)
    return recipe if options.task is None else recipe.for_task(options.task)
