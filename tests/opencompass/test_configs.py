"""A model entry is plain data that names its merge, or an error that says what to type."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec

import pytest

from harness_adapters.opencompass import merged_model
from harness_adapters.opencompass.__main__ import main
from harness_adapters.opencompass.configs import checked, settled
from merge_plugins import Recipe, identity
from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.installing import to_install
from merge_plugins.plugins import registry


@pytest.fixture(scope="module")
def good(workplace):
    return workplace / "good" / "recipe.yaml"


def test_an_entry_is_plain_data_with_absolute_paths_and_a_dtype(good):
    entry = merged_model(good, batch_size=2)
    digest = identity.digest(Recipe.load(good))
    assert ast.literal_eval(repr(entry)) == entry
    assert entry["type"] == "harness_adapters.opencompass.MergedCausalLM"
    assert entry["abbr"] == f"task_arithmetic-math+sea-{digest}"
    assert entry["digest"] == digest
    assert entry["batch_size"] == 2
    assert entry["model_kwargs"] == {"torch_dtype": "torch.bfloat16"}
    assert "../family" not in entry["recipe"]
    assert checked(entry["recipe"], digest) == Recipe.load(good)


def test_an_entry_settles_to_itself(good, tmp_path):
    entry = merged_model(good, dtype="float32", abbr="mine")
    assert settled(entry, tmp_path) == entry
    assert settled(json.loads(json.dumps(entry)), tmp_path) == entry


def test_an_entry_names_a_plugin_for_each_process(good, plugin_file, tmp_path):
    plugin_file("return self.scale * slot.stacked().mean(dim=0)")
    family = good.parents[1] / "family"
    own = {"merge_method": "own", "models": [str(family / name) for name in ("math", "sea")]}
    entry = settled({"recipe": own, "plugin": "own.py"}, tmp_path)
    assert entry["plugin"] == [str(tmp_path / "own.py")]
    assert "plugin" not in json.loads(entry["recipe"])
    registry().unload("own.py")
    assert settled(json.loads(json.dumps(entry)), tmp_path / "elsewhere") == entry


@pytest.mark.parametrize("given", ["mine", "a/b c"])
def test_a_name_of_ones_own_gets_the_digest_too(good, given):
    entry = merged_model(good, abbr=given)
    assert entry["abbr"] == f"{given.replace('/', '_').replace(' ', '_')}-{entry['digest']}"


def test_a_name_is_short_enough_for_a_folder(good):
    family = good.parents[1] / "family"
    long = family / ("long" * 50)
    long.symlink_to(family / "code")
    held = {**Recipe.load(good).as_dict(), "models": [{"model": str(long)}]}
    assert len(merged_model(held)["abbr"]) < 128


def test_other_weights_under_the_same_file_name_are_another_model(good, workplace):
    wrecked = merged_model(workplace / "wrecked" / "recipe.yaml")
    assert wrecked["abbr"] != merged_model(good)["abbr"]


def test_no_two_braces_are_left_for_a_config_to_replace(good):
    template = "{{ fileDirname }}{% for m in messages %}{{ m.content }}{% endfor %}"
    entry = merged_model({**Recipe.load(good).as_dict(), "chat_template": template})
    assert "{{" not in entry["recipe"]
    assert checked(entry["recipe"], entry["digest"]).chat_template == template


def test_vllm_is_told_the_dtype_in_its_own_words(good):
    kind = "harness_adapters.opencompass.MergedVLLM"
    entry = merged_model(good, type=kind, model_kwargs={"tensor_parallel_size": 2})
    assert entry["model_kwargs"] == {"tensor_parallel_size": 2, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"path": "base"}, "path= does not go with a merge: the recipe names its models"),
        ({"peft_path": "adapter"}, "lora: adapter"),
        ({"dtype": "bf16"}, "got 'bf16'; did you mean 'bfloat16'"),
        ({"dtype": "float16", "model_kwargs": {"torch_dtype": "torch.float32"}}, "keep one"),
        ({"digest": "0123456789ab"}, "kept as those of recipe 0123456789ab"),
        ({"type": 7}, "type is a dotted name"),
    ],
)
def test_what_cannot_be_meant_is_refused(good, entry, said):
    with pytest.raises(RecipeError) as refusal:
        merged_model(good, **entry)
    assert said in str(refusal.value)


def test_a_merge_that_is_routed_by_the_prompt_is_refused(workplace):
    models = [{"model": str(workplace / "family" / name)} for name in ("math", "sea")]
    base = str(workplace / "family" / "base")
    with pytest.raises(RecipeError, match="twin_merging weighs its experts by the prompt"):
        merged_model({"merge_method": "twin_merging", "base_model": base, "models": models})


def test_a_recipe_that_is_still_a_file_name_is_not_loaded():
    with pytest.raises(RecipeError, match="not settled yet: start the run with"):
        checked("merge.yaml", None)


def test_a_model_that_does_not_fit_is_found_before_any_harness_is(workplace):
    held = Recipe.load(workplace / "good" / "recipe.yaml").as_dict()
    held["models"].append({"model": str(workplace / "no-such-model")})
    with pytest.raises(MergeError, match="no-such-model"):
        merged_model(held)


def test_the_launcher_wants_a_run_config_first(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "run_config.py" in capsys.readouterr().err
    assert main(["no_such_config.py"]) == 1
    assert "no run config at no_such_config.py" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("mmengine") is not None, reason="OpenCompass is installed")
def test_without_opencompass_the_launcher_says_how_to_get_it(workplace, capsys):
    (workplace / "empty.py").write_text("models = []\n")
    assert main([str(workplace / "empty.py")]) == 1
    assert to_install("opencompass") in capsys.readouterr().err
