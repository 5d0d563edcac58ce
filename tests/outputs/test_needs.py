"""What is written of a merge says which plugins it needs, and a mounted folder carries a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness_adapters.mounted import mounted
from merge_plugins import Recipe, load_merged, load_plugin, mount, save
from merge_plugins.errors import MismatchError, UnknownMethodError, UntrustedCodeError
from merge_plugins.identity import digest
from merge_plugins.plugins import registry

Plugin = Callable[..., Path]
MEDIAN = "return self.scale * slot.stacked().median(dim=0).values"


@pytest.fixture
def own(plugin_file: Plugin, llamas: Mapping[str, str]) -> Recipe:
    """The median of two Llamas, and a merge of them among its models."""
    load_plugin(plugin_file(MEDIAN))
    return Recipe.from_mapping({"merge_method": "own", "models": [llamas["math"], llamas["code"]]})


def outer(own: Recipe, llamas: Mapping[str, str]) -> Recipe:
    models = [{"model": own.as_dict()}, llamas["base"]]
    return Recipe.from_mapping({"merge_method": "average_merging", "models": models})


def test_a_saved_merge_says_what_made_it(
    own: Recipe, llamas: Mapping[str, str], tmp_path: Path
) -> None:
    version = registry().get("own").version
    for number, recipe in enumerate((own, outer(own, llamas))):
        folder = save(recipe, tmp_path / f"saved-{number}")
        line = "The method own is in a file that is not published here: own.py, whose SHA-256 "
        for file in ("README.md", "merge.yaml"):
            assert f"{line}begins with {version}." in (folder / file).read_text()
        assert not [*folder.rglob("*.py")]
        assert Recipe.load(folder) == recipe


def test_a_mounted_folder_carries_the_file_to_whoever_trusts_it(
    own: Recipe, llamas: Mapping[str, str], tmp_path: Path
) -> None:
    expected = load_merged(own).state_dict()
    for number, recipe in enumerate((own, outer(own, llamas))):
        folder = mount(recipe, tmp_path / f"mounted-{number}")
        assert (folder / "plugins" / "own.py").read_bytes() == (tmp_path / "own.py").read_bytes()
        assert "The method own is in plugins/own.py" in (folder / "README.md").read_text()
    registry().unload("own.py")
    with pytest.raises(UntrustedCodeError, match=r"its method is in plugins/own\.py, Python code"):
        mounted(str(tmp_path / "mounted-0"))
    assert not registry().files
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "mounted-0", trust_remote_code=True)
    assert all(torch.equal(expected[n], weight) for n, weight in found.state_dict().items())
    assert mounted(str(tmp_path / "mounted-0")).digest == digest(own)  # it is loaded by now


def test_a_carried_file_that_was_edited_makes_another_merge(own: Recipe, tmp_path: Path) -> None:
    folder = mount(own, tmp_path / "mounted")
    registry().unload("own.py")
    file = folder / "plugins" / "own.py"
    file.write_text(file.read_text() + "# better\n")
    with pytest.raises(MismatchError, match="it was made with file"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_a_package_that_is_missing_is_named(own: Recipe, tmp_path: Path) -> None:
    folder = mount(own, tmp_path / "mounted")
    registry().unload("own.py")
    config = json.loads((folder / "config.json").read_text())
    config["merge_plugins"]["plugins"] = [
        {"method": "own", "plugin": "own-pkg:own", "version": "3"}
    ]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownMethodError, match=r"The folder was mounted with own-pkg:own 3\."):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_a_merge_of_our_methods_needs_nothing(llamas: Mapping[str, str], tmp_path: Path) -> None:
    recipe = Recipe.from_mapping({"merge_method": "average_merging", "models": [llamas["math"]]})
    folder = mount(recipe, tmp_path / "mounted")
    assert "plugins" not in json.loads((folder / "config.json").read_text())["merge_plugins"]
    assert "#" not in (folder / "merge.yaml").read_text()
