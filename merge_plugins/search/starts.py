"""The candidates that a search starts with: each model alone, equal weights, the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from merge_plugins.recipe import Rebased, Recipe, Reference
from merge_plugins.recipe.references import written
from merge_plugins.search.dimensions import Dimension, Value
from merge_plugins.search.space import Space

KEPT = ("dtype", "out_dtype")
"""Keys of the recipe that a model on its own is scored with."""


@dataclass(frozen=True)
class Start:
    """A candidate that nobody had to propose."""

    origin: str
    mapping: Mapping[str, Any]
    params: Mapping[str, Value]
    """Empty for a model on its own."""

    @property
    def is_source(self) -> bool:
        """Whether it is one of the models, not a merge."""
        return not self.params


def starts(space: Space) -> list[Start]:
    """List the candidates that are scored first, the models before the merges."""
    recipe = space.recipe(space.at({}))
    return [*_sources(recipe), *_merges(space, len(recipe.slices[0].models))]


def _sources(recipe: Recipe) -> Iterator[Start]:
    if recipe.tasks:
        return  # none of them answers the others' tasks
    base = recipe.base_model
    names = {ref: str(_model(ref)) for ref in recipe.references}
    kept = {key: value for key, value in recipe.as_dict().items() if key in KEPT}
    for ref, name in names.items():
        mapping = {"merge_method": "passthrough", "models": [{"model": written(_model(ref), str)}]}
        what = "base" if ref == base else "expert"
        yield Start(f"{what} {name}", {**mapping, **kept}, {})


def _model(ref: Reference) -> Reference:
    return ref.model if isinstance(ref, Rebased) else ref


def _merges(space: Space, n_models: int) -> Iterator[Start]:
    def equal(asked: Dimension) -> Value:
        is_weight = asked.name.partition("[")[0] == "weight"
        return asked.of(1 / n_models) if is_weight else asked.default

    for origin, suggest in (("equal weights", equal), ("defaults", lambda asked: asked.default)):
        point = space.draw(suggest)
        yield Start(origin, point.mapping, point.params)
