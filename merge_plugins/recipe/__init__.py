"""Read a recipe from a file or from the short form, check it and normalise it."""

from merge_plugins.recipe.data import Data
from merge_plugins.recipe.recipe import Recipe, read_model, read_recipe, refuse_no_recipe
from merge_plugins.recipe.references import Delta, Lora, Rebased, Reference
from merge_plugins.recipe.slices import Entry, Slice
from merge_plugins.recipe.task import Task

__all__ = [
    "Data",
    "Delta",
    "Lora",
    "Entry",
    "Rebased",
    "Recipe",
    "Reference",
    "Slice",
    "Task",
    "read_model",
    "read_recipe",
    "refuse_no_recipe",
]
