"""One recipe for all spellings of a merge, and an error for every key nobody would read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from merge_plugins import Recipe, identity
from merge_plugins.errors import MergeWarning, ParameterError, RecipeError, UnknownMethodError
from merge_plugins.planning.parameters import validate
from merge_plugins.plugins import registry
from merge_plugins.recipe.settings import Constant

TIES = """
merge_method: ties
base_model: B
models:
  - model: a
    parameters: {weight: 0.6}
  - model: b
    parameters: {weight: 0.4}
parameters: {density: 0.5, lambda: 1.0}
dtype: bfloat16
"""
FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "mergekit"


def write_model(folder: Path, value: float, n_layers: int = 4) -> None:
    folder.mkdir(parents=True)
    save_file({"w": torch.full((2,), value)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": n_layers}))


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """A folder that holds the models B, a, b and c, and is the current one."""
    for value, name in enumerate("Babc"):
        write_model(tmp_path / name, float(value))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(text: str, **changes: object) -> Recipe:
    return Recipe.from_mapping({**yaml.safe_load(text), **changes})


def refs(*names: str) -> tuple[str, ...]:
    return tuple(str(Path(name).absolute()) for name in names)


# Spellings

ONE_MERGE = {
    "torch prefix": TIES.replace("bfloat16", "torch.bfloat16"),
    "whole numbers": TIES.replace("1.0", "1"),
    "a number YAML reads as text": TIES.replace("lambda: 1.0", "lambda: 10e-1"),
    "an alias": TIES.replace("lambda", "scaling_coefficient"),
    "another path": TIES.replace("model: a", "model: ./c/../a"),
    "the base listed": TIES.replace("models:", "models:\n  - B"),
    "density per model": TIES.replace("{density: 0.5, lambda", "{lambda").replace(
        "parameters: {weight", "parameters: {density: 0.5, weight"
    ),
    "a catch-all rule": TIES.replace("density: 0.5", "density: [{filter: '*', value: 0.5}]"),
    "a gradient of one": TIES.replace("density: 0.5", "density: [0.5]"),
    "weight from both scopes": TIES.replace("{weight: 0.4}", "{}").replace(
        "{density", "{weight: 0.4, density"
    ),
    "the default seed": TIES + "seed: 0",
    "references as mappings": TIES.replace("model: a", "model: {model: {path: a}}"),
    "modules": """
merge_method: ties
base_model: B
dtype: bfloat16
modules:
  default:
    slices:
    - parameters: {density: 0.5}
      sources:
      - {layer_range: [0, 4], model: a, parameters: {weight: 0.6}}
      - {layer_range: [0, 4], model: b, parameters: {weight: 0.4}}
      - {layer_range: [0, 4], model: B}
parameters: {density: 0.3, lambda: 1.0}
""",
    "one slice": """
merge_method: ties
base_model: B
dtype: bfloat16
slices:
- sources:
  - {layer_range: [0, 4], model: a, parameters: {weight: 0.6}}
  - {layer_range: [0, 4], model: b, parameters: {weight: 0.4}}
parameters: {density: 0.5, lambda: 1.0}
""",
}


@pytest.mark.parametrize("spelling", ONE_MERGE)
def test_spellings_of_one_merge_are_one_recipe_with_one_digest(spelling):
    assert recipe(ONE_MERGE[spelling]) == recipe(TIES)
    assert identity.digest(recipe(ONE_MERGE[spelling])) == identity.digest(recipe(TIES))


@pytest.mark.parametrize(
    "other",
    [
        TIES.replace("0.6", "0.61"),
        TIES.replace("ties", "dare_ties"),
        TIES.replace("model: a", "model: c"),
        TIES.replace("base_model: B", "base_model: c"),
        TIES.replace("bfloat16", "float16"),
        TIES + "out_dtype: float32",
        TIES + "tokenizer_source: a",
        TIES + "tokenizer_source: base",
        TIES + "seed: 1",
        TIES.replace("density: 0.5", "density: [0.5, 0.4]"),
        TIES.replace("density: 0.5", "density: {filter: mlp, value: 0.5}"),
    ],
)
def test_another_merge_is_another_recipe_with_another_digest(other):
    assert recipe(other) != recipe(TIES)
    assert identity.digest(recipe(other)) != identity.digest(recipe(TIES))


numbers = st.floats(-3, 3).map(lambda x: round(x, 3))
gradients = st.lists(numbers, min_size=1, max_size=3)
values = st.one_of(numbers, gradients)
rules = st.lists(st.fixed_dictionaries({"value": values}, optional={"filter": st.text("mlp*", max_size=3)}), min_size=1, max_size=3)  # fmt: skip  # noqa: E501
own = st.fixed_dictionaries({}, optional={"weight": values | rules, "density": values | rules})


def respelled(setting: object) -> object:
    """The same setting in other words: numbers as text, a rule for a value."""
    if isinstance(setting, list):
        return [respelled(item) for item in setting]
    if isinstance(setting, dict):
        return {key: v if key == "filter" else respelled(v) for key, v in setting.items()}
    return int(setting) if setting == int(setting) else repr(setting)


@given(own, own, own, st.integers(0, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_recipe_survives_its_own_yaml_and_other_words_for_its_numbers(first, second, top, seed):
    mapping = {
        "merge_method": "ties",
        "base_model": "B",
        "models": [{"model": "a", "parameters": first}, {"model": "b", "parameters": second}],
        "parameters": top,
        "seed": seed,
    }
    written = Recipe.from_mapping(mapping)
    assert Recipe.from_mapping(written.as_dict()) == written
    assert Recipe.from_mapping(yaml.safe_load(written.to_yaml())) == written
    assert Recipe.from_mapping(json.loads(json.dumps(written.as_dict()))) == written
    said = {**mapping, "parameters": {k: respelled(v) for k, v in top.items()}}
    said["models"] = [
        {"model": name, "parameters": {k: respelled(v) for k, v in scope.items()}}
        for name, scope in (("a", first), ("b", second))
    ]
    assert Recipe.from_mapping(said) == written
    assert identity.digest(Recipe.from_mapping(said)) == identity.digest(written)


def test_as_dict_holds_only_what_is_set_and_is_the_caller_s_own():
    minimal = Recipe.from_mapping({"merge_method": "average_merging", "models": ["a", "b"]})
    a, b = refs("a", "b")
    assert minimal.as_dict() == {
        "merge_method": "average_merging",
        "models": [{"model": a}, {"model": b}],
    }
    held = recipe(TIES, parameters={"density": [0.5, 1]})
    held.as_dict()["parameters"]["density"].clear()
    assert held.as_dict()["parameters"]["density"] == [0.5, 1.0]


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="mergekit fixtures are not in this checkout")
def test_the_config_that_mergekit_writes_is_the_recipe_it_was_given():
    file = FIXTURES / "expected" / "llama-fp32" / "ties" / "mergekit_config.yml"
    found = Recipe.from_mapping(yaml.safe_load(file.read_text()), FIXTURES)
    base, a, b = (str(FIXTURES / "tiny" / "llama-fp32" / name) for name in ("base", "ft_a", "ft_b"))
    assert found == Recipe.from_mapping(
        {
            "merge_method": "ties",
            "base_model": base,
            "models": [
                {"model": a, "parameters": {"weight": 0.6}},
                {"model": b, "parameters": {"weight": 0.3}},
            ],
            "parameters": {"density": 0.4},
            "dtype": "float32",
        }
    )


# Digest


def test_the_digest_follows_content_not_paths(models, monkeypatch):
    before = identity.digest(recipe(TIES))
    assert len(before) == 12
    (models / "moved").mkdir()
    for name in "Bab":
        os.rename(models / name, models / "moved" / name)  # noqa: PTH104
    monkeypatch.chdir(models / "moved")
    assert identity.digest(recipe(TIES)) == before
    save_file({"w": torch.full((2,), 9.0)}, "a/model.safetensors")
    assert identity.digest(recipe(TIES)) != before


def test_the_order_of_models_is_part_of_the_digest():
    one, other = (
        {"merge_method": "average_merging", "models": m} for m in (["a", "b"], ["b", "a"])
    )
    assert identity.digest(Recipe.from_mapping(one)) != identity.digest(Recipe.from_mapping(other))


def test_the_version_of_the_method_s_plugin_is_part_of_the_digest(monkeypatch):
    from dataclasses import replace

    before, method = identity.digest(recipe(TIES)), registry().get("ties")
    monkeypatch.setitem(registry().methods, "ties", replace(method, version="99"))
    assert identity.digest(recipe(TIES)) != before


def test_the_label_is_method_and_digest():
    assert identity.label(recipe(TIES)) == f"ties-{identity.digest(recipe(TIES))}"


# Donors and references


def test_references_are_in_the_user_s_order_with_an_unlisted_base_first():
    assert recipe(TIES).references == refs("B", "a", "b")
    listed = {"merge_method": "average_merging", "base_model": "b", "models": ["a", "b", "c"]}
    assert Recipe.from_mapping(listed).references == refs("a", "b", "c")


def test_the_base_gives_config_and_tokenizer_or_else_the_first_model():
    assert (recipe(TIES).donor, recipe(TIES).tokenizer_donor) == refs("B", "B")
    without = Recipe.from_mapping({"merge_method": "average_merging", "models": ["b", "a"]})
    assert (without.donor, without.tokenizer_donor) == refs("b", "b")


def test_tokenizer_source_is_the_base_or_a_model():
    assert recipe(TIES, tokenizer_source="base").tokenizer_donor == refs("B")[0]
    assert recipe(TIES, tokenizer_source="b").tokenizer_donor == refs("b")[0]
    assert recipe(TIES, tokenizer_source="./B") == recipe(TIES, tokenizer_source="base")


def test_an_unlisted_base_is_an_input_only_if_a_shared_weight_applies():
    text = TIES.replace("ties", "linear").replace("{density: 0.5, lambda: 1.0}", "{}")
    assert [m.ref for m in recipe(text).models] == list(refs("a", "b"))
    shared = recipe(text, parameters={"weight": 0.1})
    assert [m.ref for m in shared.models] == list(refs("a", "b", "B"))
    assert [m.parameters["weight"] for m in shared.models] == list(map(Constant, [0.6, 0.4, 0.1]))


def test_equal_weights_of_models_are_never_given_to_an_unlisted_base():
    text = TIES.replace("ties", "linear").replace("{density: 0.5, lambda: 1.0}", "{}")
    equal = recipe(text.replace("0.6", "0.4"))
    assert [m.ref for m in equal.models] == list(refs("a", "b"))
    assert Recipe.from_mapping(equal.as_dict()) == equal


# Model references


def test_paths_are_relative_to_the_file(models, monkeypatch, tmp_path_factory):
    (models / "merge.yaml").write_text(TIES.replace("B\n", "./B\n"))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    loaded = Recipe.load(models / "merge.yaml")
    assert loaded.references == tuple(str(models / name) for name in "Bab")


def test_a_tilde_is_the_home_folder(models, monkeypatch):
    monkeypatch.setenv("HOME", str(models))
    assert recipe(TIES, base_model="~/B") == recipe(TIES)


@pytest.mark.parametrize("ref", ["org/name", "org/name-7B_v0.1@main", "gpt2", "org/x@refs/pr/1"])
def test_a_hub_id_stays_as_written(ref):
    assert recipe(TIES, base_model=ref).base_model == ref


def test_a_folder_wins_over_a_hub_id_of_its_name(models):
    write_model(models / "org" / "name", 1)
    assert recipe(TIES, base_model="org/name").base_model == str(models / "org" / "name")


@pytest.mark.parametrize("ref", ["./gone", "../gone/x", "x/y/z", "/gone"])
def test_a_path_that_is_not_there_becomes_absolute(ref):
    assert Path(recipe(TIES, base_model=ref).base_model).is_absolute()


@pytest.mark.parametrize(
    "ref",
    [{"path": "org/x", "revision": "main"}, {"model": {"path": "org/x", "revision": "main"}}],
)
def test_a_reference_in_mapping_form_is_its_text(ref):
    assert recipe(TIES, base_model=ref).base_model == "org/x@main"


@pytest.mark.parametrize("name", ["v1+lora", "a@b", "a@b@c"])
def test_a_folder_whose_name_looks_like_syntax_is_a_folder(models, name):
    write_model(models / name, 1)
    assert recipe(TIES, base_model=name).base_model == str(models / name)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("org/x+org/lora+org/more", "one '\\+' adds an adapter"),
        ("org/x@a@b", "one '@'"),
        ("a@main", "a local folder has no revision; write a"),
        ({"model": "a", "lora": "x", "delta": "y"}, "lora: or delta:, not both"),
        ({"model": {"path": "a"}, "override_architecture": "x"}, "override_architecture of a"),
        (123, "a model is a path or a hub id, in quotes if it is a number; got 123"),
        ("", "a model is a path or a hub id"),
    ],
)
def test_a_reference_that_means_nothing_is_refused(ref, message):
    with pytest.raises(RecipeError, match=message):
        recipe(TIES, base_model=ref)


# Files


@pytest.mark.parametrize("name", ["merge.yaml", "mergekit_config.yml", "any.json"])
def test_load_reads_files_and_folders(models, name):
    text = json.dumps(yaml.safe_load(TIES)) if name.endswith("json") else TIES
    (models / name).write_text(text)
    assert Recipe.load(models / name) == recipe(TIES)
    if not name.endswith("json"):
        assert Recipe.load(models) == recipe(TIES)
        assert Recipe.load(str(models)) == recipe(TIES)


def test_load_says_when_there_is_no_recipe(models):
    with pytest.raises(RecipeError, match=r"holds no merge\.yaml or mergekit_config\.yml"):
        Recipe.load(models)
    with pytest.raises(RecipeError, match=r"no recipe file at .*gone\.yaml"):
        Recipe.load(models / "gone.yaml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.yaml", TIES + "dtype: float32", "'dtype' is written twice"),
        ("m.yaml", TIES.replace("{weight: 0.6}", "{weight: 1, weight: 2}"), "'weight' is written"),
        ("m.json", '{"seed": 1, "seed": 2}', "'seed' is written twice"),
        ("m.yaml", "a: [", "not YAML"),
        ("m.yaml", TIES + "---\n" + TIES, "2 documents without name: only the last merge may"),
        ("m.yaml", f"{TIES}name: x\n---\n{TIES}name: x\n", "a name of its own; got 'x'"),
        ("m.yaml", TIES + "---\n- a\n", "a recipe is a mapping"),
        ("m.json", "{", "not JSON"),
        ("m.yaml", "- a\n- b", "a recipe is a mapping"),
        ("m.yaml", "", "a recipe is a mapping"),
        ("m.yaml", TIES.replace("ties", "tie"), "did you mean 'ties'"),
        ("m.yaml", TIES.replace("density", "densty"), "did you mean 'density'"),
    ],
)
def test_an_error_in_a_file_names_the_file(models, name, text, message):
    (models / name).write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(models / name)
    assert str(caught.value).startswith(str(models / name))


def test_an_unknown_method_keeps_its_type_when_the_file_is_named(models):
    (models / "m.yaml").write_text(TIES.replace("ties", "tie"))
    with pytest.raises(UnknownMethodError):
        Recipe.load(models / "m.yaml")


# Keys


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_methd": "x"}, "no recipe key 'merge_methd'; did you mean 'merge_method'"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of belongs to the tokenizer: write tok"),
        ({"density": 0.5}, "density is a parameter of ties; it belongs under the recipe's param"),
        ({"parameters": {"dtype": "float32"}}, "dtype belongs at the top of the recipe, not under"),
        ({"parameters": {"densty": 1}}, "no parameter 'densty'; did you mean 'density'"),
        ({"parameters": [1]}, "parameters is a mapping"),
        ({"models": [{"model": "a", "weight": 1}]}, "weight belongs under parameters: of this"),
        ({"models": [{"model": "a", "lambda": 1}]}, "lambda is a parameter of ties; it belongs"),
        ({"models": [{"model": "a", "dtype": 1}]}, "dtype belongs at the top of the recipe"),
        ({"models": [{"model": "a", "paramters": 1}]}, "'paramters'; did you mean 'parameters'"),
        ({"models": [{"model": "a", "layer_range": [0, 1]}]}, "layer_range belongs to slices"),
        ({"models": [{"model": "a", "parameters": {"lambda": 1}}]}, "one setting for the whole"),
        ({"models": [{"model": "a", "parameters": {"normalize": 1}}]}, "one setting for the whole"),
        ({"models": [{"parameters": {"weight": 1}}]}, "a model is a path or a hub id"),
        ({"models": ["a", "./a"]}, "is listed twice"),
        ({"models": []}, "at least one"),
        ({"models": "a"}, "at least one"),
        ({"models": None}, "a recipe needs models"),
        ({"slices": []}, "a recipe needs models: .* once"),
        ({"experts": []}, "experts: mixtures of experts are not built"),
        ({"merge_method": None}, "merge_method is a name; got nothing"),
        ({"dtype": "bf16"}, "dtype is one of .*; got 'bf16'; did you mean 'bfloat16'"),
        ({"out_dtype": "int8"}, "out_dtype is one of"),
        ({"seed": -1}, "seed is a whole number"),
        ({"seed": 1.5}, "seed is a whole number"),
        ({"seed": True}, "seed is a whole number"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"tokenizer": {"sources": "base"}}, "tokenizer: no key 'sources'; did you mean 'source'?"),
        ({"tokenizer": {}, "tokenizer_source": "base"}, "say the same; keep one"),
        ({"tokenizer": {"tokens": {"x": {"force": 1}}}}, "x: force is true or false; got 1"),
        ({"tokenizer": {"tokens": {"x": {"source": {"kind": "one"}}}}}, "kind is zero or model_to"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "pad_to_multiple_of is a whole number, 1 to 65"),
        ({"base_model": None, "tokenizer_source": "base"}, "tokenizer_source: base needs base_m"),
    ],
)  # fmt: skip
def test_a_key_that_nobody_would_read_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(TIES, **changes)


B_WITH_WEIGHT = {"model": "B", "parameters": {"weight": 1}}
A_WITH_WEIGHT = {"model": "a", "parameters": {"weight": 1}}


@pytest.mark.parametrize(
    ("unread", "given", "plain"),
    [
        ("weight of base_model", {"models": [B_WITH_WEIGHT, "a"]}, {"models": ["B", "a"]}),
        (
            "normalize",
            {"merge_method": "sce", "models": ["a"], "parameters": {"normalize": True}},
            {"merge_method": "sce", "models": ["a"], "parameters": {}},
        ),
        (
            "weight of a",
            {"merge_method": "model_stock", "models": [A_WITH_WEIGHT, "b"], "parameters": {}},
            {"merge_method": "model_stock", "models": ["a", "b"], "parameters": {}},
        ),
    ],
)
def test_what_another_method_reads_is_told_once_and_changes_nothing(unread, given, plain):
    with pytest.warns(MergeWarning, match="does not read") as said:
        found = recipe(TIES, **given)
    assert len(said) == 1
    assert unread.split()[0] in str(said[0].message)
    assert found == recipe(TIES, **plain)
    assert identity.digest(found) == identity.digest(recipe(TIES, **plain))


def test_the_revision_of_a_model_is_written_as_the_message_says():
    told = {"merge_method": "passthrough", "models": [{"model": "org/name", "revision": "v0"}]}
    with pytest.raises(RecipeError, match=r"write model: \{model: …, revision: …\}"):
        Recipe.from_mapping(told)
    for form in ({"model": "org/name", "revision": "v0"}, {"path": "org/name", "revision": "v0"}):
        found = Recipe.from_mapping({**told, "models": [{"model": form}]})
        assert [model.ref for model in found.models] == ["org/name@v0"]


def sliced(*layer_ranges: list[int] | None, **changes: object) -> dict:
    sources = [
        {"model": name, "parameters": {"weight": 1}, **({"layer_range": r} if r else {})}
        for name, r in zip("ab", layer_ranges, strict=False)
    ]
    return {"merge_method": "ties", "base_model": "B", "slices": [{"sources": sources, **changes}]}


def slices(*pieces: object) -> dict:
    return {"merge_method": "ties", "base_model": "B", "slices": list(pieces)}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (sliced([0, 4], [0, 3]), r"ranges of one length; got .*a \[0, 4\], .*b \[0, 3\]"),
        (sliced([0, 4], [0]), r"layer_range is \[first, last \+ 1\].*got \[0\] for .*b"),
        (sliced([0, 4], [3, 1]), r"layer_range is .*got \[3, 1\] for"),
        (sliced([0, 4], [0, 1.5]), r"layer_range is .*got \[0, 1.5\] for"),
        (sliced([0, 2], [2, 4]), "different layers, so those of the base are open; add .model: "),
        (sliced([0, 4], residual_weight=1), "a slice: residual_weight: mergekit reads it and does"),
        (sliced([0, 4], models=[]), "a slice: models belongs at the top .* one of its slices"),
        (sliced([0, 4], density=1), "a slice: density is a parameter of ties; it belongs under"),
        (sliced([0, 4], parameters=3), "parameters of a slice is a mapping"),
        (slices({"sources": "ab"}), "sources is a list of at least one"),
        (slices({"sources": []}), "sources is a list of at least one"),
        (
            slices({"sources": ["a", "a"]}),
            "a is listed twice.*To stack its layers, give each range",
        ),
        (slices({"sources": [{"model": "a", "weight": 1}]}), "a: weight belongs under parameters"),
        (slices(3), "slices is a list of {sources, parameters}; got 3 in it"),
        (slices(), "slices is a list of"),
        (
            {"merge_method": "ties", "modules": {"a": {}, "b": {}}},
            "a module needs models: or slices:, once",
        ),
        ({"merge_method": "ties", "modules": {"a": {"x": 1}}}, "module a: no recipe key 'x'"),
        ({"merge_method": "ties", "modules": 3}, "modules maps a module's name to"),
        ({**sliced([0, 4]), "models": ["a"]}, "a recipe needs models: .* once"),
    ],
)
def test_slices_that_mean_nothing_are_refused(mapping, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_mapping(mapping)


def test_slices_without_layer_ranges_are_whole_models():
    plain = {"merge_method": "ties", "base_model": "B", "models": ["a", "b"]}
    plain["parameters"] = {"weight": 1}
    assert Recipe.from_mapping(sliced(None, None)) == Recipe.from_mapping(plain)


def test_a_slice_s_filter_falls_through_to_the_recipe_s_setting():
    mapping = sliced([0, 4], [0, 4], parameters={"density": {"filter": "mlp", "value": 0.2}})
    found = Recipe.from_mapping({**mapping, "parameters": {"density": 0.7}})
    rules = [{"filter": "mlp", "value": 0.2}, {"value": 0.7}]
    assert found.parameters["density"].as_yaml() == rules


# Real methods


@pytest.mark.parametrize("name", sorted(registry().methods))
def test_every_method_s_parameters_round_trip_under_every_spelling(name):
    method = registry().get(name)
    n = max(method.min_experts, 1)
    for word, parameter in method.spellings.items():
        value = 0.5 if parameter.required else parameter.default
        mapping = {"merge_method": name, "base_model": "B", "models": list("abc"[:n])}
        found = Recipe.from_mapping({**mapping, "parameters": {word: value}})
        assert Recipe.from_mapping(found.as_dict()) == found


def test_weights_that_sum_to_zero_are_refused_before_any_file_is_opened():
    mapping = {"merge_method": "linear", "models": ["/gone/a", "/gone/b"]}
    mapping["models"] = [
        {"model": "/gone/a", "parameters": {"weight": 1}},
        {"model": "/gone/b", "parameters": {"weight": -1}},
    ]
    with pytest.raises(ParameterError, match="sum to zero"):
        validate(registry().get("linear"), Recipe.from_mapping(mapping))
