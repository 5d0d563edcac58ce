"""Choose the models to compare: those of a recipe, or any that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merge_plugins.errors import RecipeError
from merge_plugins.recipe import Entry, Recipe, Reference, Slice, read_model, read_recipe
from merge_plugins.recipe.files import NAMES, is_short_form, path_of
from merge_plugins.recipe.references import RECIPE_FILES, titles

ANY_METHOD = "task_arithmetic"
"""Method of the recipe that stands for a comparison: it reads all models, and nothing else."""


@dataclass(frozen=True)
class Models:
    """The models of a comparison, and the base that they are compared from."""

    refs: tuple[Reference, ...]
    """The models, in the user's order."""
    base: Reference | None = None
    """None: the models' weights themselves are compared."""
    exclude: tuple[str, ...] = ()
    """Parts of names of weights that are left out."""

    def __post_init__(self) -> None:
        if len(self.all) < 2:
            only = f"{self.refs[0]} is alone" if self.refs else "no model is named"
            raise RecipeError(
                f"compare needs two models; {only}. Name another, or its base with --base MODEL"
            )

    @property
    def all(self) -> tuple[Reference, ...]:
        """Every model that is read, the base first."""
        return (*(() if self.base is None else (self.base,)), *self.refs)

    @property
    def names(self) -> list[str]:
        """Short names of all models, each its own."""
        return titles(self.all)

    @property
    def recipe(self) -> Recipe:
        """A recipe that reads these models as every merge of them does: from the first, if any."""
        origin, *others = self.all
        return Recipe(ANY_METHOD, (Slice(tuple(map(Entry, others))),), base_model=origin)


def of_recipe(recipe: Recipe) -> Models:
    """List the models that a recipe merges, as whole models."""
    base = recipe.base_model
    refs = tuple(dict.fromkeys(model.ref for model in recipe.models if model.ref != base))
    return Models(refs, base, recipe.exclude)


def chosen(words: Sequence[str], base: str | None = None) -> Models:
    """Read the words of a command line: one recipe, or models."""
    if base is None and len(words) == 1:
        return _of_word(words[0])
    recipes = [word for word in words if is_short_form(word)]
    if recipes:
        raise RecipeError(f"{recipes[0]} is a recipe; compare one recipe, or models by name")
    own = None if base is None else read_model(base)
    refs = (read_model(word) for word in words)
    return Models(tuple(dict.fromkeys(ref for ref in refs if ref != own)), own)


def _of_word(word: str) -> Models:
    path = path_of(word)
    is_recipe = path.suffix in RECIPE_FILES or any((path / name).is_file() for name in NAMES)
    if is_recipe or is_short_form(word):
        return of_recipe(read_recipe(word))
    return Models((read_model(word),))  # raises: it is alone
