"""A file that a user names is a plugin; a recipe can name none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_plugins import Recipe, load_plugin, merged_tensors
from merge_plugins.errors import PluginError, RecipeError, UnknownMethodError
from merge_plugins.identity import digest
from merge_plugins.plugins import registry

Write = Callable[..., str]
Plugin = Callable[..., Path]
MEDIAN = "return self.scale * slot.stacked().median(dim=0).values"
MEAN = "return self.scale * slot.stacked().mean(dim=0)"


@pytest.fixture
def models(checkpoint: Write) -> list[str]:
    return [checkpoint({"w": torch.full((3,), value)}) for value in (1.0, 2.0, 6.0)]


def own(models: list[str], **given: Any) -> Recipe:
    return Recipe.from_mapping({"merge_method": "own", "models": models, **given})


def value(recipe: Recipe) -> float:
    return float(merged_tensors(recipe)["w"][...][0])


def test_a_file_registers_its_methods(models: list[str], plugin_file: Plugin) -> None:
    with pytest.raises(UnknownMethodError, match=r"own is named by --plugin, or plugin="):
        own(models)
    load_plugin(plugin_file(MEDIAN))
    assert value(own(models)) == 2.0
    method = registry().get("own")
    assert (method.plugin, method.is_guest, len(method.version)) == ("own.py", True, 12)
    assert str(method) == f"own (plugin own.py {method.version})"


def test_the_digest_is_of_the_code_and_not_of_its_place(
    models: list[str], plugin_file: Plugin
) -> None:
    found = {}
    for call, file in ((MEDIAN, "own.py"), (MEAN, "own.py"), (MEDIAN, "elsewhere/other.py")):
        load_plugin(plugin_file(call, file=file))
        found[call, file] = digest(own(models))
        registry().unload(Path(file).name)
    first, edited, moved = found.values()
    assert first == moved != edited


def test_a_file_that_was_edited_replaces_what_it_was(
    models: list[str], plugin_file: Plugin
) -> None:
    for call, expected in ((MEDIAN, 2.0), (MEDIAN, 2.0), (MEAN, 3.0)):
        load_plugin(plugin_file(call))
        assert value(own(models)) == expected
    assert registry().of_plugin("own.py") == ["own"]


def test_another_file_of_that_name_is_refused(plugin_file: Plugin) -> None:
    load_plugin(plugin_file(MEDIAN))
    with pytest.raises(PluginError, match=r"another own\.py is loaded, .*rename one"):
        load_plugin(plugin_file(MEAN, file="elsewhere/own.py"))
    load_plugin(plugin_file(MEDIAN, file="elsewhere/own.py"))  # a copy


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = 1 / 0\n", r"own\.py failed: ZeroDivisionError: .* \(own\.py, line 2\)"),
        ("def f(:\n", r"own\.py failed: SyntaxError: invalid syntax \(own\.py, line 1\)"),
        ("x = 1\n", r"own\.py registers no merge method; .*new-method NAME"),
        (
            "from merge_plugins import hookimpl\n@hookimpl\ndef register_merge_methods(register):\n"
            "    register('ties', dict)\n",
            r"own\.py is no plugin: 'ties' is already registered by merge_plugins\.methods",
        ),
    ],
    ids=["fails", "no Python", "no hook", "clashes"],
)
def test_a_file_that_is_no_plugin_is_refused(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(PluginError, match=message):
        load_plugin(tmp_path / "own.py")
    assert "own.py" not in {**registry().plugins, **registry().files, **registry().broken}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=rf"no plugin at {tmp_path}/own\.py; name a Python file"):
        load_plugin(tmp_path / "own.py")
    (tmp_path / "own.txt").touch()
    with pytest.raises(PluginError, match=r"a plugin's name ends with \.py"):
        load_plugin(tmp_path / "own.txt")
    with pytest.raises(PluginError, match="no plugin at"):
        load_plugin("x" * 5000)


@pytest.mark.parametrize("spelling", [str, lambda file: [file], lambda file: f"{file}+{file}"])
def test_model_args_name_a_plugin(
    spelling: Callable[[str], Any], models: list[str], plugin_file: Plugin
) -> None:
    file = plugin_file(MEDIAN)
    args = {"method": "own", "plugin": spelling(str(file)), "models": "+".join(models), "scale": 2}
    recipe, rest = Recipe.split_model_args({**args, "batch_size": 8})
    assert (value(recipe), rest) == (4.0, {"batch_size": 8})
    assert "plugin" not in recipe.as_dict()


def test_a_recipe_names_no_plugin(models: list[str], plugin_file: Plugin, tmp_path: Path) -> None:
    """In a file, below a config=, or for one of its models."""
    named = {"merge_method": "own", "models": models, "plugin": str(plugin_file(MEDIAN))}
    outer = {"merge_method": "linear", "models": [{"model": named}]}
    (tmp_path / "merge.yaml").write_text(json.dumps(named))
    ways: list[Callable[[], Recipe]] = [
        lambda: Recipe.from_mapping(named),
        lambda: Recipe.load(tmp_path / "merge.yaml"),
        lambda: Recipe.from_mapping(outer),
        lambda: Recipe.from_model_args({"method": "linear", "models": [{"model": named}]}),
    ]
    for way in ways:
        with pytest.raises(RecipeError, match=r"plugin: no recipe can have code run; .*--plugin"):
            way()
    with pytest.raises(UnknownMethodError):
        Recipe.from_model_args({"config": str(tmp_path / "merge.yaml")})
    assert not registry().files
