"""The recipe key `task:`, what the head of a model answers."""

from __future__ import annotations

from typing import Any

import pytest

from merge_plugins import Recipe
from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.recipe import Task

IMDB = {"name": "imdb", "columns": ["text"], "labels": ["neg", "pos"]}


def spelled(*models: Any, **keys: Any) -> Recipe:
    entries = [{"model": name, "task": task} for name, task in models]
    return Recipe.from_mapping({"merge_method": "average_merging", "models": entries, **keys})


def test_a_task_is_a_name_or_says_what_the_harness_does_not_know() -> None:
    recipe = spelled(("a", "cola"), ("b", IMDB), ("c", None))
    assert {name: model.task for name, model in recipe.tasks.items()} == {
        "cola": Task("cola"),
        "imdb": Task("imdb", ("text",), ("neg", "pos")),
    }
    assert Recipe.from_mapping(recipe.as_dict()) == recipe
    assert [entry.get("task") for entry in recipe.as_dict()["models"]] == ["cola", IMDB, None]


def test_every_spelling_is_one_recipe() -> None:
    file = spelled(("a", "cola"), ("b", "rte"))
    given = {"method": "average_merging", "models": "a+b"}
    assert Recipe.from_model_args({**given, "task": "cola+rte"}) == file
    assert Recipe.from_model_args({**given, "task": ["cola", {"name": "rte"}]}) == file
    entries = [{"model": "a", "task": "cola"}, {"model": "b", "task": "rte"}]
    assert Recipe.from_model_args({**given, "models": entries}) == file


def test_tasks_of_the_short_form_leave_out_the_base() -> None:
    given = {"method": "task_arithmetic", "base": "base", "models": "base+a", "task": "cola"}
    recipe = Recipe.from_model_args(given)
    assert [str(model.ref) for model in recipe.tasks.values()] == [str(recipe.models[0].ref)]


def test_the_donor_is_the_model_of_the_task() -> None:
    recipe = spelled(("a", None), ("b", "cola"), ("c", "rte"), base_model="base")
    other = spelled(("a", None), ("b", "cola"), ("c", "rte"), base_model="base", donor="c")
    assert recipe.donor == recipe.models[1].ref
    assert recipe.for_task("cola") == recipe == other.for_task("cola")
    assert recipe.for_task("rte") == other
    assert other.donor == recipe.models[2].ref


WRONG: dict[str, tuple[Any, str]] = {
    "a number": (3, "task is a name"),
    "an empty name": ("", "task is a name"),
    "no name": ({"labels": ["a", "b"]}, "task is a name"),
    "an unknown key": ({"name": "a", "lables": ["a"]}, "no key 'lables'; did you mean 'labels'"),
    "truth for labels": ({"name": "a", "labels": [False, True]}, "in quotes .*; got False"),
    "three columns": ({"name": "a", "columns": ["a", "b", "c"]}, "one or two; got a, b, c"),
    "one label twice": ({"name": "a", "labels": ["no", "no"]}, "once each; got no, no"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_task_is_refused(what: str) -> None:
    given, said = WRONG[what]
    with pytest.raises(RecipeError, match=said):
        spelled(("a", given), ("b", None))


def test_two_models_of_one_task_are_refused_unless_their_heads_are_merged() -> None:
    two = ("a", "cola"), ("b", "cola")
    with pytest.raises(RecipeError, match=r"cola is the task of .*a and of .*b; .* exclude: none"):
        spelled(*two)
    assert [*spelled(*two, exclude="none").tasks] == ["cola"]
    with pytest.raises(RecipeError, match=r"exclude: none merges heads, .* cola and rte; delete"):
        spelled(("a", "cola"), ("b", "rte"), exclude="none")


def test_a_task_of_the_base_or_of_the_recipe_is_refused() -> None:
    models = [{"model": "base", "task": "cola"}, "a"]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    with pytest.raises(ParameterError, match="base_model takes no task"):
        Recipe.from_mapping(recipe)
    with pytest.raises(RecipeError, match="task belongs beside model:"):
        spelled(("a", None), task="cola")


def test_a_task_that_no_model_has_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no model .* has task: cila; did you mean 'cola'"):
        spelled(("a", "cola"), ("b", "rte")).for_task("cila")
    with pytest.raises(RecipeError, match="says which task its head answers; write task: beside"):
        spelled(("a", None), ("b", None)).for_task("cola")
    with pytest.raises(RecipeError, match="task has 1 values for 2 models"):
        Recipe.from_model_args({"method": "average_merging", "models": "a+b", "task": "cola"})
