"""Which code a mounted folder runs: ours, and that of its models only with leave."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from merge_plugins import Recipe, mount
from merge_plugins.errors import RecipeError, UntrustedCodeError
from merge_plugins.outputs.mounted_code import refuse_needed_code
from merge_plugins.outputs.recipe_folder import mounted_recipe

INJECTED = "AutoModelX:\n    pass\nimport os; os.mkdir('CANARY')\nclass Y"
EVIL = """
import os
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import TextGenerationPipeline
os.makedirs({canary!r}, exist_ok=True)
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
class Pipeline(TextGenerationPipeline): pass
"""
PIPELINES = {"text-generation": {"impl": "evil.Pipeline", "pt": ["AutoModelForCausalLM"]}}
IN_CONFIG: Mapping[str, dict[str, Any]] = {
    "config": {"auto_map": {"AutoConfig": "evil.Config"}},
    "a config of the hub": {"auto_map": {"AutoConfig": "evil/repo--evil.Config"}},
    "model": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    "tokenizer": {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}},
    "pipeline": {"custom_pipelines": PIPELINES},
    "a key that is code": {"auto_map": {INJECTED: "evil.Model"}},
    "an Auto class that is none": {"auto_map": {"AutoModelX": "evil.Model", "os": "evil.Model"}},
    "a list": {"auto_map": ["evil.Model"]},
}


@pytest.fixture(autouse=True)
def _code_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the copies that transformers makes of a folder's code from the user and other tests."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "code-cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if name.partition(".")[0] == "transformers_modules":
            del sys.modules[name]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is made when a source's code runs; also the one that injected code makes."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd" / "CANARY"


Hostile = Callable[..., Recipe]


@pytest.fixture
def hostile(llamas: Mapping[str, str], tmp_path: Path, canary: Path) -> Hostile:
    """A merge whose donor is a plain Llama with some keys, and code, that it does not need."""

    def write(config: Mapping[str, Any], tokenizer: Mapping[str, Any] | None = None) -> Recipe:
        donor = Path(shutil.copytree(llamas["math"], tmp_path / "evil"))
        for name, more in (("config.json", config), ("tokenizer_config.json", tokenizer or {})):
            held = json.loads((donor / name).read_text())
            (donor / name).write_text(json.dumps({**held, **more}))
        for name in ("evil.py", "tokenizer_evil.py"):
            (donor / name).write_text(EVIL.format(canary=str(canary)))
        models = [str(donor), llamas["code"]]
        return Recipe.from_mapping(
            {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
        )

    return write


def load_all(folder: Path) -> Any:
    """Load everything that a folder may name code for, and trust it, as its README asks."""
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    transformers.pipeline("text-generation", str(folder), trust_remote_code=True)
    assert tokenizer("5 7")["input_ids"]
    return model


@pytest.mark.parametrize("what", IN_CONFIG)
def test_code_that_a_plain_model_brings_does_not_run(
    what: str, hostile: Hostile, canary: Path, tmp_path: Path
) -> None:
    folder = mount(hostile(IN_CONFIG[what]), tmp_path / "mounted")
    assert [file.name for file in folder.glob("*.py")] == ["modeling_merge.py"]
    config = json.loads((folder / "config.json").read_text())
    assert "custom_pipelines" not in config
    assert {*config["auto_map"].values()} == {f"modeling_merge.{key}" for key in config["auto_map"]}
    assert type(load_all(folder)) is LlamaForCausalLM
    assert not canary.exists()


def test_code_that_a_tokenizer_brings_does_not_run(
    hostile: Hostile, canary: Path, tmp_path: Path
) -> None:
    own = {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}
    folder = mount(hostile({}, own), tmp_path / "mounted")
    assert "auto_map" not in json.loads((folder / "tokenizer_config.json").read_text())
    load_all(folder)
    assert not canary.exists()


@pytest.mark.parametrize("what", ["config", "tokenizer"])
def test_with_leave_the_models_code_runs(
    what: str, hostile: Hostile, canary: Path, tmp_path: Path
) -> None:
    own = {"config": IN_CONFIG["model"], "tokenizer": IN_CONFIG["tokenizer"]}
    recipe = hostile(own["config"] if what == "config" else {}, own[what])
    load_all(mount(recipe, tmp_path / "mounted", trust_remote_code=True))
    assert canary.is_dir()


def test_with_leave_no_key_becomes_code(hostile: Hostile, canary: Path, tmp_path: Path) -> None:
    recipe = hostile(IN_CONFIG["a key that is code"])
    folder = mount(recipe, tmp_path / "mounted", trust_remote_code=True)
    assert "CANARY" not in (folder / "modeling_merge.py").read_text()
    assert INJECTED not in json.loads((folder / "config.json").read_text())["auto_map"]
    load_all(folder)
    assert not canary.exists()


def test_with_leave_a_config_class_that_no_model_is_for_is_refused(
    hostile: Hostile, canary: Path, tmp_path: Path
) -> None:
    """Transformers would look for its model, and find none, when the folder is loaded."""
    with pytest.raises(RecipeError, match=r"none for the model.* mount without --trust-remote-cod"):
        mount(hostile(IN_CONFIG["config"]), tmp_path / "mounted", trust_remote_code=True)
    assert not canary.exists()


def test_with_leave_only_the_models_that_go_with_its_own_config_are_listed(
    hostile: Hostile, tmp_path: Path
) -> None:
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = mount(hostile({"auto_map": own}), tmp_path / "mounted", trust_remote_code=True)
    listed = json.loads((folder / "config.json").read_text())["auto_map"]
    assert listed == {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "modeling_merge.AutoModelForCausalLM",
    }
    assert type(load_all(folder)).__name__ == "Model"


@pytest.mark.parametrize("mounted_with", [False, True])
@pytest.mark.parametrize("loaded_with", [False, True])
def test_code_needs_the_leave_of_who_mounts_and_of_who_loads(
    mounted_with: bool, loaded_with: bool, llamas: Mapping[str, str], tmp_path: Path
) -> None:
    """As vLLM loads it, whose argument of that name is for models of its own, too."""
    (tmp_path / "data.jsonl").write_text('{"text": "1 2 3"}\n')
    models = [llamas["math"], llamas["code"]]
    recipe = Recipe.from_mapping(
        {"merge_method": "fisher_merging", "models": models, "data": "data.jsonl"}, tmp_path
    )
    folder = mount(recipe, tmp_path / "mounted", trust_remote_code=mounted_with)
    data = mounted_recipe(folder, loaded_with).data
    assert data is not None
    assert data.trust_remote_code == (mounted_with and loaded_with)


def test_a_tokenizer_that_needs_its_code_is_refused(tmp_path: Path, canary: Path) -> None:
    own = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    (tmp_path / "evil.py").write_text(EVIL.format(canary=str(canary)))
    with pytest.raises(UntrustedCodeError, match=r"tokenizer cannot be loaded.*--trust-remote-cod"):
        refuse_needed_code(None, tmp_path)
    assert not canary.exists()


def test_pooling_by_code_of_its_own_needs_leave(hostile: Hostile, tmp_path: Path) -> None:
    recipe = hostile({})
    donor = Path(str(recipe.donor))
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    (donor / "pool").mkdir()
    (donor / "pool" / "pool.py").touch()
    (donor / "modules.json").write_text(
        json.dumps([*modules, {"path": "pool", "type": "pool.Pool"}])
    )
    with pytest.raises(
        UntrustedCodeError, match=r"modules\.json names 'pool\.Pool'.*--trust-remot"
    ):
        mount(recipe, tmp_path / "mounted")
    folder = mount(recipe, tmp_path / "mounted", trust_remote_code=True)
    assert (folder / "pool" / "pool.py").is_file()
