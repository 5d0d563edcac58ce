"""The short form of a recipe, in every shape lm-eval's parsers hand it to us."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_plugins import Recipe
from merge_plugins.errors import ParameterError, RecipeError, UnknownMethodError
from merge_plugins.planning.parameters import validate
from merge_plugins.plugins import registry
from merge_plugins.recipe import files, read_recipe
from merge_plugins.recipe.settings import as_yaml

YAML = """
merge_method: ties
base_model: B
models:
  - {model: a, parameters: {weight: 0.6}}
  - {model: b, parameters: {weight: 0.4}}
parameters: {density: 0.5}
"""


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """A folder that holds the models B, a, b and c, and is the current one."""
    for name in "Babc":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config(models):
    """The recipe in a file of another folder that has models of its own."""
    for name in "Bab":
        (models / "there" / name).mkdir(parents=True)
    (models / "there" / "merge.yaml").write_text(YAML)
    return models / "there" / "merge.yaml"


def ties(**changes: object) -> Recipe:
    args = {"method": "ties", "base": "B", "models": "a:0.6+b:0.4", "density": 0.5, **changes}
    return Recipe.from_model_args({k: v for k, v in args.items() if v != "absent"})


def weights(recipe: Recipe) -> list[object]:
    scopes = ({**recipe.parameters, **model.parameters} for model in recipe.models)
    return [as_yaml(scope).get("weight") for scope in scopes]


def names(recipe: Recipe) -> list[str]:
    return [Path(model.ref).name for model in recipe.models]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "absent", "merge_method": "ties"},
        {"base": "absent", "base_model": "B"},
        {"base": "absent", "base_model": "./B"},
        {"models": "a+b", "weights": "0.6+0.4"},
        {"models": "a+b", "weights": [0.6, 0.4]},
        {"models": "a+b", "weights": "[0.6, 0.4]"},
        {"models": "a+b", "weight": "0.6+4e-1"},
        {"models": ["a", "b"], "weights": ["0.6", "0.4"]},
        {"models": "[a,b]", "weights": "0.6+0.4"},
        {"models": "[a:0.6,b:0.4]"},
        {"models": ["a:0.6", "b:0.4"]},
        {"models": '["a","b"]', "weights": (0.6, 0.4)},
        {"models": {"a": 0.6, "b": 0.4}},
        {"models": '{"a": 0.6, "b": 0.4}'},
        {"models": {"a": {"weight": 0.6}, "b": {"weight": 0.4}}},
        {"models": [{"model": "a", "weight": 0.6}, {"model": "b", "weight": 0.4}]},
        {"models": [{"model": "a", "parameters": {"weight": 0.6}}, "b:0.4"]},
        {"models": [{"model": {"path": "a"}, "weight": 0.6}, "b:0.4"]},
        {"models": "a:0.6+B+b:0.4"},
        {"density": "0.5"},
        {"density": "0.5+0.5"},
        {"density": [0.5, 0.5]},
        {"density": "absent", "params": {"density": 0.5}},
        {"density": "absent", "params": '{"density": 0.5}'},
        {"density": "absent", "params": "{density: [{filter: null, value: 0.5}]}"},
        {"seed": 0},
        {"seed": "0", "out_dtype": None, "tokenizer_source": "None"},
    ],
)
def test_every_spelling_is_the_recipe_of_the_file(changes):
    assert ties(**changes) == Recipe.from_mapping(yaml.safe_load(YAML))


finite = st.floats(0.01, 1).map(lambda x: round(x, 4))


@given(st.lists(finite, min_size=3, max_size=3), st.lists(finite, min_size=3, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_weights_and_lists_are_in_the_order_of_models(shares, densities):
    text = "+".join(f"{name}:{share!r}" for name, share in zip("cab", shares, strict=True))
    short = ties(models=text, density="+".join(map(repr, densities)))
    long = ties(models="c+a+b", weights=shares, density=densities)
    assert short == long
    assert names(short) == ["c", "a", "b"]
    assert weights(short) == shares or weights(short) == [shares[0]] * 3


# Models


@pytest.mark.parametrize(
    ("item", "ref", "weight"),
    [
        ("org/x@main", "org/x@main", None),
        ("org/x@main:0.6", "org/x@main", 0.6),
        ("org/x:1e-2", "org/x", 0.01),
        ("org/x:-.5", "org/x", -0.5),
        (r"C:\x", r"C:\x", None),
        (r"C:\x:2", r"C:\x", 2.0),
        ("s3:x", "s3:x", None),
    ],
)
def test_a_colon_counts_only_before_a_number(item, ref, weight):
    found = ties(models=f"{item}+b:7", density="absent")
    assert found.models[0].ref in (ref, str(Path(ref).absolute()))
    assert weights(found) == [weight, 7.0]


@pytest.mark.parametrize(
    ("typed", "name"),
    [(123, "123"), (1.5, "1.5"), (0.5 + 0.5j, "0.5+0.5j"), (2j, "2j"), (True, "True")],
)
def test_a_path_that_a_parser_took_for_a_number_is_the_path_as_typed(models, typed, name):
    (models / name).mkdir()
    assert Path(ties(base=typed).base_model).name == name
    assert names(ties(models=[typed, "b"], weights=1)) == [name, "b"]


def test_a_plus_in_a_path_needs_a_list(models):
    (models / "a+b").mkdir()
    assert names(ties(models=["a+b", "c"], weights="1+2", density="absent")) == ["a+b", "c"]


def test_a_single_number_of_models_is_one_path(models):
    (models / "7").mkdir()
    assert names(ties(models=7, weights=1)) == ["7"]


@pytest.mark.parametrize("models_", ["a+", "+a", [""], "a:1+"])
def test_an_empty_item_is_refused(models_):
    with pytest.raises(RecipeError, match="an item of models= is empty"):
        ties(models=models_)


# Parameters


def test_one_number_is_for_all_models():
    assert weights(ties(models="a+b+c", weights=0.5)) == [0.5, 0.5, 0.5]


def test_one_weight_for_all_models_is_not_the_base_s():
    found = Recipe.from_model_args(
        {"method": "linear", "base": "B", "models": "a+b", "weights": 0.5}
    )
    assert names(found) == ["a", "b"]
    assert weights(found) == [0.5, 0.5]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["weights", "density"])
def test_a_list_has_one_value_per_model(name, n):
    changes = {"models": "a+b", "weights": 1, name: [0.5] * n}
    with pytest.raises(ParameterError, match=f"{n} values for 2 models; write one each"):
        ties(**changes)


def test_gradients_and_filters_come_in_params():
    found = ties(density="absent", params={"density": [0.1, 0.9], "normalize": False})
    assert as_yaml(found.parameters) == {"density": [0.1, 0.9], "normalize": False}
    rules = [{"filter": "mlp", "value": 0.5}, {"value": 0.1}]
    assert as_yaml(ties(density=rules).parameters)["density"] == rules


def test_a_shared_parameter_takes_a_gradient_as_it_is():
    found = Recipe.from_model_args({"method": "slerp", "base": "B", "models": "a", "t": [0, 1]})
    assert as_yaml(found.parameters) == {"t": [0.0, 1.0]}


def test_values_arrive_as_text_or_parsed():
    assert ties(normalize="True", **{"lambda": "1e-1"}) == ties(normalize=True, scaling_coefficient=0.1)  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"densty": 0.5}, "ties: no setting or parameter 'densty'; did you mean 'density'"),
        ({"modles": "a"}, "no setting or parameter 'modles'; did you mean 'models'"),
        ({"density": 0.5j}, "density is a number; got '0.5j'"),
        ({"density": "much"}, "density is a number; got 'much'"),
        ({"weights": 1}, "weight is given twice: in models="),
        ({"models": "a+b", "weight": 1, "weights": 2}, "weight is given twice: 1 and weights=2"),
        ({"base_model": "a"}, "base_model is given twice"),
        ({"lambda": 1, "scaling_coefficient": 2}, "lambda is given twice"),
        ({"method": "absent"}, "no merge method given; add method=<name> or config="),
        ({"models": "absent"}, "a recipe needs models"),
        ({"params": 3}, "params is a mapping"),
        ({"params": "{density: "}, "not YAML"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"out_dtype": "int4"}, "out_dtype is one of"),
        ({"dtype": "float32"}, "no setting or parameter 'dtype'"),
        ({"models": "a:1+a:2"}, "is listed twice"),
        ({"config": "gone.yaml"}, "no recipe file at gone.yaml"),
    ],
)
def test_what_means_nothing_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        ties(**changes)


@pytest.mark.parametrize("stray", [{"b": ""}, {"0.4]": "x"}, {"'b'": ""}])
def test_a_bare_comma_is_explained(stray):
    message = "',' separates arguments. Join the values of one with '\\+': models=…\\+"
    for read in (Recipe.from_model_args, Recipe.split_model_args):
        with pytest.raises(RecipeError, match=message):
            read({"method": "ties", "models": "a", **stray})


def test_weights_of_a_method_without_weights_are_refused():
    with pytest.raises(ParameterError, match="slerp: no parameter 'weight'; it takes no weights"):
        Recipe.from_model_args({"method": "slerp", "base": "B", "models": "a", "weights": 1})


def test_an_unknown_method_is_named():
    with pytest.raises(UnknownMethodError, match="no merge method 'tie'; did you mean 'ties'"):
        ties(method="tie")


def test_a_share_beyond_one_is_refused_with_what_to_type():
    with pytest.raises(ParameterError, match=r"got 20\. For 20 % write density: 0\.2"):
        validate(registry().get("ties"), ties(density=20))


# config=


def test_a_config_is_the_recipe_of_the_file(config):
    for given_ in (config, config.parent, "there/merge.yaml", "there"):
        assert Recipe.from_model_args({"config": given_}) == Recipe.load(config)


def test_keys_override_the_config_and_stay_relative_to_the_current_folder(config):
    found = Recipe.from_model_args({"config": "there", "base": "B", "seed": 3})
    assert found.base_model == str(Path("B").absolute())
    assert found.seed == 3
    assert found.models == Recipe.load(config).models


def test_models_replaces_the_whole_list_of_the_config(config):
    found = Recipe.from_model_args({"config": "there", "models": "c:1+a"})
    assert [model.ref for model in found.models] == [str(Path(n).absolute()) for n in "ca"]
    assert weights(found) == [1.0, None]
    assert as_yaml(found.parameters) == {"density": 0.5}


def test_a_typed_parameter_wins_in_every_scope_of_the_config(config):
    held = yaml.safe_load(YAML)
    held["models"][0]["parameters"]["density"] = [{"filter": "mlp", "value": 0.1}]
    config.write_text(yaml.safe_dump(held))
    found = Recipe.from_model_args({"config": "there", "density": 0.9})
    assert as_yaml(found.parameters) == {"density": 0.9}
    assert all(set(model.parameters) == {"weight"} for model in found.models)
    assert weights(Recipe.from_model_args({"config": "there", "weights": "1+2"})) == [1.0, 2.0]
    each = Recipe.from_model_args({"config": "there", "density": "0.7+0.9"})
    assert [as_yaml(model.parameters)["density"] for model in each.models] == [0.7, 0.9]


def test_another_method_may_be_tried_on_a_config(config):
    found = Recipe.from_model_args({"config": "there", "method": "dare_ties"})
    assert found.merge_method == "dare_ties"


def test_a_method_alone_may_come_from_the_arguments(config):
    held = yaml.safe_load(YAML)
    del held["merge_method"], held["models"]
    config.write_text(yaml.safe_dump(held))
    found = Recipe.from_model_args({"config": "there", "method": "ties", "models": "a:1"})
    assert as_yaml(found.parameters) == {"weight": 1.0, "density": 0.5}


def test_an_error_in_a_config_names_the_file(config):
    config.write_text(YAML + "densty: 1")
    with pytest.raises(RecipeError, match=r"there/merge\.yaml: no recipe key 'densty'"):
        Recipe.from_model_args({"config": "there"})


def test_a_config_of_slices_may_be_given_other_models(config):
    held = yaml.safe_load(YAML)
    held["slices"] = [{"sources": held.pop("models")}]
    config.write_text(yaml.safe_dump(held))
    assert names(Recipe.from_model_args({"config": "there"})) == ["a", "b"]
    assert names(Recipe.from_model_args({"config": "there", "models": "c:1+a:1"})) == ["c", "a"]


# The harness's own arguments


def test_what_is_not_the_recipe_s_is_the_harness_s(config):
    ours = {"method": "ties", "base": "B", "models": "a", "weights": 1, "density": 0.5}
    rest = {"dtype": "float32", "tokenizer": "x", "batch_size": 2, "densty": 1, "max_length": None}
    assert Recipe.split_model_args({**ours, **rest}) == (Recipe.from_model_args(ours), rest)
    given = {"config": "there", "keep": 1, "density": 1}
    recipe, kept = Recipe.split_model_args(given)
    assert recipe == Recipe.from_model_args({"config": "there", "density": 1})
    assert kept == {"keep": 1}


@pytest.mark.parametrize("habit", ["pretrained", "revision", "model"])
def test_arguments_that_load_a_checkpoint_are_refused_on_every_way(config, habit):
    """Each would be accepted for nothing, or be taken for the base, also of a config= file."""
    for ours in ({"config": "there"}, {"method": "ties", "base": "B", "models": "a"}):
        for read in (Recipe.from_model_args, Recipe.split_model_args):
            with pytest.raises(RecipeError, match=f"^{habit}= does not go with a merge: "):
                read({**ours, habit: "gpt2"})
    recipe, rest = Recipe.split_model_args({"config": "there", habit: None, "keep": 1})
    assert (recipe.as_dict(), rest) == (Recipe.load(config).as_dict(), {"keep": 1})


def test_splitting_without_a_method_says_what_to_add():
    with pytest.raises(RecipeError, match="no merge method given"):
        Recipe.split_model_args({"models": "a"})


def test_a_recipe_file_is_parsed_once_on_every_way(config, monkeypatch):
    parsed, from_yaml = [], files.each_from_yaml

    def counting(text):
        parsed.append(text)
        return from_yaml(text)

    monkeypatch.setattr(files, "each_from_yaml", counting)
    Recipe.load(config)
    Recipe.from_model_args({"config": str(config), "density": 0.9})
    Recipe.split_model_args({"config": str(config), "method": "dare_ties", "batch_size": 2})
    read_recipe(f"config={config}")
    assert len(parsed) == 4
