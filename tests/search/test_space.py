"""A recipe in which values vary: what is drawn, what it is called, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from merge_plugins.errors import MergeError, ParameterError
from merge_plugins.recipe import Recipe
from merge_plugins.search.history import History
from merge_plugins.search.samplers import Random, combinations
from merge_plugins.search.space import Space

HERE = Path()
LAMBDA = {"low": 0.5, "high": 2.0}


def space(**changes: Any) -> Space:
    recipe = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "org/math"}, {"model": "org/code"}],
        "parameters": {"weight": 1, "lambda": LAMBDA},
    }
    return Space.parse({**recipe, **changes}, HERE)


def drawn(of: Space, n: int = 50) -> list[Recipe]:
    rng = random.Random(0)
    return [of.recipe(of.draw(lambda asked: rng.choice(asked.ends))) for _ in range(n)]


def test_anything_varies_and_has_a_name_of_its_own() -> None:
    varied = {"low": 0.1, "high": 1}
    models = [
        {"model": "org/math", "parameters": {"weight": varied, "density": [varied, 0.5, varied]}},
        {
            "model": "org/code",
            "parameters": {"weight": [{"filter": "mlp", "value": varied}, {"value": varied}]},
        },
    ]
    of = space(models=models, parameters={"normalize": {"choices": [True, False]}, "density": 0.3})
    assert list(of.dimensions) == [
        *("weight[math]", "density[math, 0]", "density[math, 2]"),
        *("weight[code, mlp]", "weight[code, 1]", "normalize"),
    ]
    of.check()
    params = dict.fromkeys(of.dimensions, 0.25) | {"normalize": False}
    recipe = of.recipe(of.at(params))
    assert recipe.as_dict()["models"][0]["parameters"] == {
        "weight": 0.25,
        "density": [0.25, 0.5, 0.25],
    }
    assert recipe.parameters["normalize"].scalars == (False,)


def test_models_of_one_name_and_layers_of_a_stack_are_told_apart() -> None:
    weight = {"parameters": {"weight": {"low": 0, "high": 1}}}
    of = space(models=[{"model": f"{org}/math", **weight} for org in "ab"])
    assert list(of.dimensions) == ["weight[0]", "weight[1]", "lambda"]
    sources = [
        {"model": "a", "layer_range": [0, {"low": 1, "high": 3}], "parameters": {"scale": LAMBDA}}
    ]
    stack = Space.parse({"merge_method": "passthrough", "slices": [{"sources": sources}] * 2}, HERE)
    assert list(stack.dimensions) == [
        *("layer_range[0, a, 1]", "scale[0, a]", "layer_range[1, a, 1]", "scale[1, a]"),
    ]
    assert {type(value) for value in stack.at({}).params.values()} == {int, float}


def test_parameters_follow_the_method() -> None:
    method = {"choices": ["ties", "linear", "dare_ties"]}
    parameters = {"weight": 1, "lambda": LAMBDA, "density": {"low": 0.2, "high": 1}}
    of = space(merge_method=method, parameters=parameters)
    of.check()
    assert of.at({"merge_method": "linear"}).params == {"merge_method": "linear"}
    assert [*of.at({"merge_method": "ties"}).params] == ["merge_method", "lambda", "density"]
    assert {recipe.merge_method for recipe in drawn(of)} == {"ties", "linear", "dare_ties"}


def test_choices_hold_anything_dimensions_included() -> None:
    of = space(
        parameters={"weight": 1, "density": {"choices": [[0.4, 0.6], {"low": 0.1, "high": 0.3}]}}
    )
    assert list(of.dimensions) == ["density", "density[choice 1]"]
    assert {len(recipe.parameters["density"].scalars) for recipe in drawn(of)} == {1, 2}
    subsets = {"choices": [["org/math"], ["org/math", "org/code"]]}
    assert {len(r.models) for r in drawn(space(models=subsets))} == {1, 2}


def test_defaults_are_the_methods_own_where_they_are_in_range() -> None:
    assert space().at({}).params == {"lambda": 1.0}
    assert space(parameters={"weight": 1, "lambda": {"low": 2, "high": 4}}).at({}).params == {
        "lambda": 3.0
    }
    log = {"low": 0.01, "high": 0.04, "log": True}
    assert space(parameters={"weight": 1, "density": log}).at({}).params == {"density": 0.02}


def test_what_is_drawn_has_no_digits_that_decide_nothing() -> None:
    of = space(parameters={"weight": 1, "lambda": {"low": 0, "high": 1, "step": 0.1}})
    values = {point.params["lambda"] for point in combinations(of)}
    assert values == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    assert space().at({"lambda": 1.23456789}).params == {"lambda": 1.235}


def test_a_grid_counts_over_conditional_dimensions_too() -> None:
    of = space(
        merge_method={"choices": ["ties", "linear"]},
        parameters={"weight": 1, "density": {"choices": [0.2, 0.5, 1.0]}},
    )
    assert [point.params.get("density") for point in combinations(of)] == [0.2, 0.5, 1.0, None]


def test_random_draws_stay_in_the_space_and_repeat_with_the_seed() -> None:
    of = space()
    one, other = (Random(of, seed).propose(History([])).params for seed in (0, 1))
    assert one == Random(of, 0).propose(History([])).params != other
    assert 0.5 <= one["lambda"] <= 2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"weight": 1}}, "nothing in this recipe varies"),
        ({"lambda": {"low": 2, "high": 1}}, "low 2 is not below high 1; write {low: 1, high: 2}"),
        ({"lambda": {"low": 2, "high": 2}}, "low 2 is not below high 2; write 2"),
        ({"lambda": {"low": 0, "hihg": 1}}, "no key 'hihg' in what varies; did you mean 'high'"),
        ({"lambda": {"low": 0}}, "lambda: high is a number; got None"),
        ({"lambda": {"low": 0, "high": 1, "log": True}}, "log needs a low above 0"),
        ({"lambda": {"low": 0, "high": 1, "step": 2}}, "step is a number above 0, at most"),
        ({"lambda": {"choices": []}}, "choices is a list of at least one value"),
        ({"lambda": {"choices": [1, 1]}}, "a choice is listed twice"),
        ({"density": {"low": 10, "high": 20}}, "For 10 % write density: 0.1"),
        ({"density": {"low": 0.1, "high": 20}}, r"density at 20: .*density is a share"),
        ({"normalize": {"low": 0, "high": 1}}, "choices: "),
        ({"lamda": LAMBDA}, "no parameter 'lamda'; did you mean 'lambda'"),
        ({"merge_method": {"choices": ["ties", "tsi"]}}, "no merge method 'tsi'"),
        ({"merge_method": {"low": 1, "high": 2}}, "merge_method varies by choices"),
        (
            {"merge_method": {"choices": ["ties", "linear"]}, "lamda": LAMBDA},
            "no parameter 'lamda' in ties or linear; did you mean 'lambda'",
        ),
        ({"base_modle": "base", "lambda": LAMBDA}, "no recipe key 'base_modle'"),
    ],
)
def test_a_mistake_is_named_before_a_model_is_opened(changes: Any, message: str) -> None:
    top = {key: value for key, value in changes.items() if key in ("parameters", "merge_method")}
    top |= {key: value for key, value in changes.items() if key.startswith("base")}
    own = {key: value for key, value in changes.items() if key not in top}
    if own:
        top["parameters"] = {"weight": 1, **own}
    with pytest.raises(MergeError, match=message):
        space(**top).check()


def test_a_parameter_that_is_none_of_the_methods_is_a_parameter_error() -> None:
    with pytest.raises(MergeError) as caught:
        space(parameters={"weight": 1, "density": {"low": 0.1, "high": 3}}).check()
    assert isinstance(caught.value.__cause__, ParameterError)
