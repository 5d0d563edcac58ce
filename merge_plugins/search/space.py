"""Parse a recipe in which values vary into a space of recipes, and draw recipes from it.

Any number may be ``{low, high[, log][, step]}``, any value ``{choices: [...]}``. A parameter that
the drawn method lacks is left out, so parameters follow the method where that varies too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.planning.parameters import validate
from merge_plugins.plugins import Method, registry
from merge_plugins.recipe import Recipe
from merge_plugins.search.dimensions import Choice, Dimension, Range, Value, dimension, is_varied
from merge_plugins.search.naming import Path_, name_of, steps_of

UNVARIED = ("tokenizer", "data", "name")
"""Keys of a recipe below which nothing varies: a token may be called ``low``."""
Suggest = Callable[[Dimension], Value]
"""Chooses a value for a dimension."""


@dataclass(frozen=True)
class Point:
    """One recipe of a space."""

    params: Mapping[str, Value]
    """Value of each dimension that the recipe depends on, by name."""
    mapping: Mapping[str, Any]
    """The recipe as a file would hold it."""


@dataclass(frozen=True)
class Space:
    """A recipe whose varying values are dimensions."""

    template: Mapping[str, Any]
    """The recipe's mapping with a `Dimension` in place of each value that varies."""
    methods: tuple[Method, ...]
    folder: Path
    """Where relative paths in the recipe start."""

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], folder: Path) -> Space:
        """Parse the mapping of a recipe that varies, or raise `MergeError`; reads no model."""
        method: Any = mapping.get("merge_method")
        if is_varied(method):
            method = dimension(method, "merge_method", "", ())
            if isinstance(method, Range):
                raise MergeError("merge_method varies by choices: {choices: [ties, linear]}")
        names = method.values if isinstance(method, Choice) else (method,)
        if not all(isinstance(name, str) for name in names):
            raise MergeError("merge_method is a name, or {choices: [name, …]}")
        methods = tuple(registry().get(name) for name in names)
        template = {
            key: value if key in UNVARIED else _parsed(value, (key,), methods)
            for key, value in mapping.items()
        }
        space = cls(template, methods, folder)
        space._check_names()
        return space

    @cached_property
    def dimensions(self) -> Mapping[str, Dimension]:
        """All dimensions by name, in the order written."""
        return {found.name: found for found in _dimensions(self.template)}

    @property
    def varies_method(self) -> bool:
        """Whether the method is one of the dimensions."""
        return isinstance(self.template["merge_method"], Choice)

    def draw(self, suggest: Suggest) -> Point:
        """Draw a recipe; ``suggest`` is asked for each dimension on which it depends."""
        params: dict[str, Value] = {}

        def ask(asked: Dimension) -> Any:
            if asked.name not in params:
                params[asked.name] = asked.checked(suggest(asked))
            return asked.at(params[asked.name])

        chosen = self.template["merge_method"]
        name = ask(chosen) if isinstance(chosen, Choice) else chosen
        method = registry().get(name) if self.varies_method else None
        return Point(params, {k: _drawn(v, ask, method, k) for k, v in self.template.items()})

    def at(self, params: Mapping[str, Value]) -> Point:
        """Draw the recipe of given values; a dimension that is not named has its default."""
        return self.draw(lambda asked: params.get(asked.name, asked.default))

    def recipe(self, point: Point) -> Recipe:
        """Read the recipe of a point and check it as far as that goes without a model."""
        recipe = Recipe.from_mapping(point.mapping, self.folder)
        validate(registry().get(recipe.merge_method), recipe)
        return recipe

    def check(self) -> Recipe:
        """Check the space at its ends, each dimension in turn; return the recipe of its defaults.

        Raises `MergeError` for a value that the method does not take. Reads no model.
        """
        method = self.template["merge_method"]
        for name in method.labels if isinstance(method, Choice) else (None,):
            chosen: dict[str, Value] = {} if name is None else {"merge_method": name}
            for reached in self.at(chosen).params:
                for value in self.dimensions[reached].ends:
                    self._checked({**chosen, reached: value}, reached)
        return self.recipe(self.at({}))

    def _checked(self, params: Mapping[str, Value], name: str) -> None:
        try:
            self.recipe(self.at(params))
        except MergeError as exc:
            raise MergeError(f"{name} at {params[name]}: {exc}") from exc

    def _check_names(self) -> None:
        if not self.dimensions:
            raise MergeError(
                "nothing in this recipe varies; write {low: …, high: …} or {choices: […]} in place "
                "of a value, or let 'merge-plugins search --init merge.yaml' propose ranges"
            )
        for scope in _scopes(self.template):
            for word in scope:
                if self.varies_method and not any(word in m.spellings for m in self.methods):
                    known = {spelling for m in self.methods for spelling in m.spellings}
                    names = " or ".join(method.name for method in self.methods)
                    raise MergeError(f"no parameter {word!r} in {names}{did_you_mean(word, known)}")


def _parsed(value: Any, path: Path_, methods: tuple[Method, ...]) -> Any:
    """Replace what varies in a part of a recipe by its dimension."""
    if is_varied(value):
        parameter = path[path.index("parameters") + 1] if "parameters" in path[:-1] else ""
        found = dimension(value, name_of(path), parameter, methods)
        if isinstance(found, Choice):
            below = ((*path, f"choice {i}") for i in range(len(found.values)))
            inner = map(_parsed, found.values, below, itertools.repeat(methods))
            return Choice(found.name, tuple(inner), found.default_label)
        return found
    if isinstance(value, Mapping):
        return {k: _parsed(v, (*path, str(k)), methods) for k, v in value.items()}
    if isinstance(value, list | tuple):
        each = zip(steps_of(value), value, strict=True)
        return [_parsed(item, (*path, step), methods) for step, item in each]
    return value


def _drawn(value: Any, ask: Callable[[Dimension], Any], method: Method | None, key: str) -> Any:
    """Replace each dimension by its value; drop parameters that a chosen method lacks."""
    if isinstance(value, Range | Choice):
        return _drawn(ask(value), ask, method, key)
    if isinstance(value, Mapping):
        kept = {
            k: v
            for k, v in value.items()
            if key != "parameters" or method is None or k in method.spellings
        }
        return {k: _drawn(v, ask, method, str(k)) for k, v in kept.items()}
    if isinstance(value, list):
        return [_drawn(item, ask, method, "") for item in value]
    return value


def _dimensions(value: Any) -> Iterator[Dimension]:
    if isinstance(value, Range | Choice):
        yield value
    inside = value.values if isinstance(value, Choice) else _items(value)
    for item in inside:
        yield from _dimensions(item)


def _scopes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Iterate over every mapping under a key ``parameters``."""
    if isinstance(value, Mapping) and isinstance(value.get("parameters"), Mapping):
        yield value["parameters"]
    for item in _items(value):
        yield from _scopes(item)


def _items(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Mapping):
        return tuple(value.values())
    return tuple(value) if isinstance(value, list | tuple) else ()
