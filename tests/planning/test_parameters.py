"""What a setting comes to for one tensor, and which recipes a method refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_plugins.api import PerExpert, parameter
from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.planning import parameters
from merge_plugins.planning.parameters import build, resolved, unmatched_filters
from merge_plugins.plugins import Method, registry
from merge_plugins.recipe import Entry, Recipe, Slice
from merge_plugins.recipe.normalize import experts
from merge_plugins.recipe.settings import MISSING, parsed, read_settings

MLP, ATTENTION = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A method with a parameter of every kind."""

    weight: PerExpert = parameter(doc="")
    density: PerExpert = parameter(1.0, doc="", alias=("keep",))
    lambda_: float = parameter(1.0, doc="shared")
    normalize: bool = True
    n_steps: int = 1
    scale: float | None = None
    rescale: bool | Literal["l1", "none"] = "none"
    note: str = ""

    def __post_init__(self) -> None:
        if not all(0 < density <= 1 for density in self.density):
            raise ValueError(f"density is the share kept, in (0, 1]; got {self.density}")


MIX = Method("mix", Mix, "tests", needs_base=True, min_experts=2, max_experts=3)


def entry(name: str, **parameters: object) -> Entry:
    return Entry(name, read_settings(MIX, parameters, name))


def mix(*own: dict, **parameters: object) -> Recipe:
    models = tuple(entry(name, **settings) for name, settings in zip("abc", own, strict=False))
    return Recipe("mix", (Slice(models, read_settings(MIX, parameters)),), base_model="base")


def validate(method: Method, recipe: Recipe) -> None:
    parameters.validate(method, recipe.normal(method))


def resolve(setting: object, tensor: str, t: float) -> object:
    return parsed(setting, lambda value: value).at(tensor, t)


def only(recipe: Recipe) -> Slice:
    """The one slice of a merge of whole models, in its normal form."""
    (piece,) = recipe.normal(MIX).slices
    return piece


def weighted(**parameters: object) -> Recipe:
    return mix({"weight": 0.6}, {"weight": 0.4}, **parameters)


def at(recipe: Recipe, name: str, tensor: str = MLP, t: float = 0.0) -> object:
    return resolved(MIX, only(recipe), tensor, t)[name]


# One setting


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9), st.data())
def test_a_gradient_goes_through_its_points_and_stays_between_neighbours(points, data):
    n = len(points)
    for i, point in enumerate(points):
        assert resolve(points, MLP, i / (n - 1)) == pytest.approx(point, abs=1e-9)
    t = data.draw(st.floats(0, 1))
    i = min(int(t * (n - 1)), n - 2)
    low, high = sorted(points[i : i + 2])
    assert low - 1e-9 <= resolve(points, MLP, t) <= high + 1e-9


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1))
def test_a_gradient_of_two_points_is_linear(first, last, t):
    expected = first + (last - first) * t
    assert resolve([first, last], MLP, t) == pytest.approx(expected, abs=1e-9)


@given(st.floats(-10, 10), st.floats(0, 1))
def test_a_gradient_of_one_point_is_that_point(value, t):
    assert resolve([value], MLP, t) == value


@pytest.mark.parametrize(("t", "expected"), [(0, True), (0.49, True), (0.5, False), (1, True)])
def test_a_list_of_truths_is_steps(t, expected):
    assert resolve([True, False, True], MLP, t) is expected


def test_a_list_of_text_is_steps():
    assert [resolve(["l1", "none"], MLP, t) for t in (0, 0.9, 1)] == ["l1", "l1", "none"]


def test_the_first_filter_in_the_name_decides():
    rules = [{"filter": "mlp", "value": 1}, {"filter": "proj", "value": 2}, {"value": 3}]
    assert [resolve(rules, name, 0) for name in (MLP, ATTENTION, "norm")] == [1, 2, 3]


@pytest.mark.parametrize("everything", [None, "*"])
def test_null_and_star_match_every_tensor(everything):
    assert resolve({"filter": everything, "value": 2}, "norm", 0) == 2


def test_a_filter_is_a_plain_substring_not_a_pattern():
    assert resolve({"filter": "mlp.*", "value": 2}, MLP, 0) is MISSING


def test_a_rule_holds_a_gradient():
    assert resolve([{"filter": "mlp", "value": [0, 1]}], MLP, 0.25) == 0.25


# Scopes


def test_a_model_s_own_setting_wins_over_the_recipe_s():
    assert at(mix({"weight": 1}, {}, weight=2), "weight") == (1, 2)


def test_a_filter_that_does_not_match_falls_to_the_next_scope_not_to_the_default():
    own = {"weight": 1, "density": {"filter": "mlp", "value": 0.2}}
    recipe = mix(own, {"weight": 1}, density=0.5)
    assert at(recipe, "density", MLP) == (0.2, 0.5)
    assert at(recipe, "density", ATTENTION) == (0.5, 0.5)


def test_a_filter_that_matches_in_no_scope_falls_to_the_default():
    recipe = weighted(density={"filter": "mlp", "value": 0.2})
    assert at(recipe, "density", ATTENTION) == (1.0, 1.0)


def test_a_shared_parameter_is_read_from_the_recipe_then_the_default():
    assert at(weighted(**{"lambda": 0.5}), "lambda") == 0.5
    assert at(weighted(), "lambda") == 1.0


def test_a_required_parameter_says_what_to_type():
    with pytest.raises(ParameterError, match=r"mix: weight is required for b; write parameters:"):
        validate(MIX, mix({"weight": 1}, {}))


def test_a_required_parameter_whose_filters_all_miss_names_the_tensor():
    recipe = mix({}, {}, weight={"filter": "mlp", "value": 1}).normal(MIX)
    validate(MIX, recipe)
    with pytest.raises(ParameterError, match=r"required for a; no filter matches lm_head"):
        build(MIX, only(recipe), "lm_head", 0)


@given(st.floats(0, 1))
def test_validate_and_build_agree_on_scopes_at_any_depth(t):
    recipe = mix({"weight": [0, 1]}, {"weight": [{"filter": "mlp", "value": [1, 0]}]}, weight=3)
    assert at(recipe, "weight", MLP, t) == pytest.approx((t, 1 - t))
    assert at(recipe, "weight", ATTENTION, t) == pytest.approx((t, 3))


# Types


@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [
        ("lambda", "1e-5", 1e-5),
        ("lambda", 1, 1.0),
        ("lambda", "-2", -2.0),
        ("normalize", "True", True),
        ("normalize", "false", False),
        ("normalize", 1.0, True),
        ("normalize", 0, False),
        ("n_steps", 3.0, 3),
        ("n_steps", "3", 3),
        ("scale", None, None),
        ("scale", "None", None),
        ("scale", "0.5", 0.5),
        ("rescale", "l1", "l1"),
        ("rescale", "True", True),
        ("rescale", "none", "none"),
        ("note", "x", "x"),
    ],
)
def test_values_take_the_parameter_s_type(name, typed, expected):
    found = at(weighted(**{name: typed}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "typed", "message"),
    [
        ("lambda", "much", "lambda is a number; got 'much'"),
        ("lambda", True, "lambda is a number; got True"),
        ("lambda", None, "lambda is a number; got None"),
        ("lambda", float("nan"), "lambda is a number; got nan"),
        ("lambda", [1, "x"], "lambda is a number; got 'x'"),
        ("lambda", [1, [2]], r"lambda is a number; got \[2\]"),
        ("normalize", 2, "normalize is true or false; got 2"),
        ("normalize", "yes", "normalize is true or false; got 'yes'"),
        ("n_steps", 1.5, "n_steps is a whole number; got 1.5"),
        ("scale", "big", "scale is a number; got 'big'"),
        ("rescale", "non", "one of 'l1', 'none'; got 'non'; did you mean 'none'"),
        ("note", 3, "note is text; got 3"),
        ("lambda", [], "a list holds"),
        ("lambda", [1, {"value": 2}], "a list holds"),
        ("lambda", {"filter": "mlp"}, "a rule is"),
        ("lambda", {"filters": "mlp", "value": 1}, "a rule is"),
        ("lambda", {"filter": 3, "value": 1}, "a rule is"),
        ("lambda", {"filter": "mlp", "value": {"filter": "up", "value": 1}}, "a rule is"),
    ],
)
def test_values_of_another_type_are_refused(name, typed, message):
    with pytest.raises(ParameterError, match=message):
        validate(MIX, weighted(**{name: typed}))


def test_a_gradient_of_a_whole_number_is_refused_where_it_is_none():
    piece = only(weighted(n_steps=[1, 2]))
    with pytest.raises(ParameterError, match=r"n_steps is a whole number; got 1\.5"):
        build(MIX, piece, MLP, 0.5)


# A built method


def test_build_returns_the_method_s_dataclass():
    built, values = build(MIX, only(weighted(density=[0.5, 1.0], **{"lambda": 2})), MLP, 0.5)
    assert built == Mix(weight=(0.6, 0.4), density=(0.75, 0.75), lambda_=2.0)
    assert values["lambda"] == 2.0


def test_a_refusal_names_method_and_tensor_only_when_the_settings_vary():
    for density, where in ((20, False), ({"filter": "mlp", "value": 20}, True)):
        piece = only(weighted(density=density))
        with pytest.raises(ParameterError, match="mix: density is the share kept") as caught:
            build(MIX, piece, MLP, 0.0)
        assert (MLP in str(caught.value)) is where


# Before any tensor is known


@pytest.mark.parametrize(
    "density",
    [
        20,
        [0.5, 20, 0.5],
        [{"filter": "mlp", "value": 20}, {"value": 0.5}],
        [{"filter": "mlp", "value": [0.5, 0.5, 20]}],
        [{"filter": "mlp", "value": 0.5}, {"value": 20}],
    ],
)
def test_every_value_is_tried_before_any_tensor_is_known(density):
    with pytest.raises(ParameterError, match="density is the share kept"):
        validate(MIX, weighted(density=density))
    with pytest.raises(ParameterError, match="density is the share kept"):
        validate(MIX, mix({"weight": 1}, {"weight": 1, "density": density}))


def test_each_value_is_tried_once_however_many_there_are(monkeypatch):
    """What evolution writes: a value per layer, for each kind of weight and each model."""
    built = []
    post_init = Mix.__post_init__
    monkeypatch.setattr(Mix, "__post_init__", lambda mix: built.append(mix) or post_init(mix))
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for n_values in (32, 320):
        built.clear()
        values = [i / n_values for i in range(n_values)]
        weight = [{"filter": kind, "value": values} for kind in kinds] + [{"value": 1}]
        validate(MIX, mix({"weight": weight}, {"weight": weight}))
        tried = [mix.weight[0] for mix in built]
        assert all(any(value == pytest.approx(one) for one in tried) for value in (*values, 1.0))
        assert len(built) == len(kinds) * n_values + 2


def test_a_long_gradient_is_read_once(monkeypatch):
    gradient = parsed([0.5] * 999 + [1.0], lambda value: value)
    counted = []
    monkeypatch.setattr(
        "merge_plugins.recipe.settings.is_number", lambda value: counted.append(value) or True
    )
    assert [gradient.at("", i / 999) for i in range(1000)] == [*gradient.values]
    assert len(counted) == 1000


def test_an_unknown_parameter_is_refused_in_both_scopes():
    message = "no parameter 'densty'; did you mean 'density'"
    with pytest.raises(ParameterError, match=message):
        weighted(densty=1)
    with pytest.raises(ParameterError, match=message):
        mix({"weight": 1, "densty": 1}, {"weight": 1})


def test_a_shared_parameter_in_a_model_s_entry_is_refused():
    with pytest.raises(ParameterError, match=r"normalize is one setting .* entry of a"):
        validate(MIX, mix({"weight": 1, "normalize": True}, {"weight": 1}))


def test_one_parameter_under_two_spellings_is_refused():
    with pytest.raises(ParameterError, match="density and keep are one parameter"):
        validate(MIX, weighted(density=0.5, keep=0.5))


@pytest.mark.parametrize(("n", "got"), [(1, "got 1: a"), (0, "got 0: none")])
def test_too_few_models_are_refused_the_base_not_counted(n, got):
    models = (Entry("base"), *(Entry(c) for c in "abc"[:n]))
    recipe = Recipe("mix", (Slice(models),), base_model="base")
    with pytest.raises(RecipeError, match=f"takes 2 to 3 models besides base_model; {got}"):
        validate(MIX, recipe)


def test_too_many_models_are_refused():
    two = Method("two", Mix, "tests", min_experts=2, max_experts=2)
    recipe = Recipe("two", (Slice(tuple(entry(c, weight=1) for c in "abc")),))
    with pytest.raises(RecipeError, match="two: takes 2 models; got 3: a, b, c"):
        validate(two, recipe)


def test_a_method_that_needs_a_base_says_how_to_name_one():
    models = entry("a", weight=1), entry("b", weight=1)
    with pytest.raises(RecipeError, match="mix: needs a base model; add base_model:"):
        validate(MIX, Recipe("mix", (Slice(models),)))


@pytest.mark.parametrize("facts", [{"stats": ("fisher",)}, {"needs_data": True}])
def test_a_method_that_needs_data_says_how_to_name_it(facts):
    fisher = Method("fisher", Mix, "tests", **facts)
    with pytest.raises(RecipeError, match="fisher: needs calibration data for a; add data: <texts"):
        validate(fisher, Recipe("fisher", (Slice((entry("a", weight=1),)),)))


def test_whether_data_is_needed_may_depend_on_a_parameter():
    sometimes = Method("sometimes", Mix, "tests", needs_data=lambda mix: mix.normalize)
    with pytest.raises(RecipeError, match="needs calibration data for a"):
        validate(sometimes, mix({"weight": 1}, normalize=True))
    validate(sometimes, mix({"weight": 1}, normalize=False))


def test_filters_that_match_no_tensor_are_told():
    rules = [{"filter": "mpl", "value": 0.5}, {"filter": "mlp", "value": 0.5}, {"value": 1}]
    recipe = mix({"weight": {"filter": "atn", "value": 1}}, {"weight": 1}, density=rules)
    assert unmatched_filters(recipe, [MLP, ATTENTION]) == ("atn", "mpl")


# Which models are merged


def linear(base_model: str | None, *listed: str, needs_base: bool = False, **parameters: object):
    method = Method("m", Mix, "tests", needs_base=needs_base)
    piece = Slice(tuple(map(Entry, listed)), read_settings(method, parameters))
    return [model.ref for model in experts(piece, base_model, method)]


def test_the_base_of_a_method_that_needs_one_is_no_expert():
    assert linear("base", "a", "base", "b", needs_base=True, weight=1) == ["a", "b"]


def test_a_base_that_is_listed_is_an_expert_where_it_stands():
    assert linear("b", "a", "b", "c") == ["a", "b", "c"]


def test_an_unlisted_base_only_gives_config_and_tokenizer():
    assert linear("base", "a", "b") == ["a", "b"]


def test_an_unlisted_base_is_the_last_expert_if_a_shared_weight_applies_to_it():
    assert linear("base", "a", "b", weight=1) == ["a", "b", "base"]


# One normal form


settings = st.one_of(
    st.floats(0.1, 1),
    st.lists(st.floats(0.1, 1), min_size=2, max_size=3),
    st.builds(lambda f, v: [{"filter": f, "value": v}], st.sampled_from(["mlp", "proj"]),
              st.floats(0.1, 1)),
)  # fmt: skip
scopes = st.fixed_dictionaries({}, optional={"weight": settings, "density": settings})


@given(scopes, scopes, scopes, st.sampled_from([MLP, ATTENTION, "norm"]), st.floats(0, 1))
def test_the_normal_form_means_what_was_written_and_is_its_own(first, second, shared, tensor, t):
    recipe = mix(first, second, weight=1.0, **{k: v for k, v in shared.items() if k != "weight"})
    settled = recipe.normal(MIX)
    assert settled.normal(MIX) == settled
    written = resolved(MIX, recipe.slices[0], tensor, t)
    assert resolved(MIX, settled.slices[0], tensor, t) == written


@pytest.mark.parametrize("others", [["a"], []])
def test_a_refused_value_of_a_gradient_names_model_parameter_and_layer(others):
    models = [{"model": name, "parameters": {"weight": 1.0, "density": 0.5}} for name in others]
    models.append({"model": "b", "parameters": {"weight": 1.0, "density": [0, 0.5, 1]}})
    recipe = Recipe.from_mapping({"merge_method": "dare_ties", "base_model": "B", "models": models})
    with pytest.raises(ParameterError, match=r"\(density of .*b, in the first layer\)$"):
        parameters.validate(registry().get("dare_ties"), recipe)
