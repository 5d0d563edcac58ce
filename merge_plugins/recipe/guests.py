"""Find the plugins that a merge needs beside this package."""

from __future__ import annotations

from collections.abc import Iterator

from merge_plugins.plugins import Method, registry
from merge_plugins.recipe.recipe import Recipe
from merge_plugins.recipe.references import Delta, Lora, Rebased, Reference


def guests(recipe: Recipe) -> tuple[Method, ...]:
    """List the methods of a merge, and of merges among its models, that others' plugins register.

    Each once, the merge's own first.
    """
    found = (registry().get(name) for name in dict.fromkeys(_names(recipe)))
    return tuple(method for method in found if method.is_guest)


def _names(ref: Reference) -> Iterator[str]:
    if isinstance(ref, Recipe):
        yield ref.merge_method
        for each in ref.references:
            yield from _names(each)
    elif isinstance(ref, Lora | Delta):
        yield from _names(ref.model)
    elif isinstance(ref, Rebased):
        yield from _names(ref.model)
        yield from _names(ref.base_model)
