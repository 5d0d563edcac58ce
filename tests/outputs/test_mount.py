"""A recipe folder: loaded by anything that loads a checkpoint, and bit for bit the saved merge."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import seeded, write_family
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
)

from merge_plugins import MergeError, Recipe, identity, load_merged, mount, save
from merge_plugins.cli import main
from merge_plugins.errors import (
    CheckpointError,
    MergeWarning,
    MismatchError,
    RecipeError,
    UntrustedCodeError,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IDS = torch.tensor([[1, 5, 9, 2, 40, 17, 3, 3]])
Write = Callable[..., str]
Spell = Callable[..., Recipe]
Mount = Callable[..., Path]


@pytest.fixture(autouse=True)
def _code_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the copies that transformers makes of a folder's code from the user and other tests."""
    from transformers import dynamic_module_utils

    def forget() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "code-cache"))
    others = [path for path in sys.path if (Path(path) / "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in others])
    forget()
    yield
    forget()


@pytest.fixture
def saved(winner: Recipe, tmp_path: Path) -> Path:
    return save(winner, tmp_path / "saved")


@pytest.fixture
def mounted(winner: Recipe, tmp_path: Path) -> Path:
    return mount(winner, tmp_path / "mounted")


def load(folder: Path | str, auto_class: Any = AutoModelForCausalLM, **given: Any) -> Any:
    """Load as a harness does that trusts the folder's code."""
    return auto_class.from_pretrained(folder, trust_remote_code=True, **given)


def assert_same(found: Any, expected: Any) -> None:
    """Assert that two live models are one, in class, weights, and what they put out."""
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    with torch.no_grad():
        assert torch.equal(found(IDS)[0], expected(IDS)[0])


def test_the_folder_is_a_checkpoint_without_weights(mounted: Path) -> None:
    assert sorted(file.name for file in mounted.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "merge.yaml",
        "modeling_merge.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert len((mounted / "modeling_merge.py").read_text().splitlines()) < 30
    assert AutoTokenizer.from_pretrained(mounted)("5 7")["input_ids"]
    assert AutoConfig.from_pretrained(mounted).model_type == "llama"
    assert "no weights" in (mounted / "README.md").read_text()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dtype": torch.float32},
        {"torch_dtype": "auto"},
        {"dtype": "float16"},
        {"device_map": "auto"},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_loading_it_equals_loading_the_saved_merge(
    given: dict[str, Any], mounted: Path, saved: Path
) -> None:
    found, expected = load(mounted, **given), AutoModelForCausalLM.from_pretrained(saved, **given)
    assert_same(found, expected)
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()
    assert found.config._attn_implementation == expected.config._attn_implementation
    assert found.name_or_path == str(mounted)
    ours, theirs = found.config.to_dict(), expected.config.to_dict()
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert differing - {"_name_or_path", "torch_dtype"} == {"merge_plugins"}


def test_every_auto_class_finds_the_merge_in_its_own_class(mounted: Path, saved: Path) -> None:
    assert_same(load(mounted, AutoModel), AutoModel.from_pretrained(saved))
    with pytest.raises(MismatchError, match=r"needs 1 weights the merge does not have.*score"):
        load(mounted, AutoModelForSequenceClassification)  # transformers would make a head up


def test_a_harness_may_change_the_config(mounted: Path) -> None:
    config = AutoConfig.from_pretrained(mounted, trust_remote_code=True)
    config.use_cache = False
    model = load(mounted, config=config)
    assert model.config.use_cache is False
    assert config.auto_map  # the caller's own is left alone
    assert load(mounted, output_attentions=True).config.output_attentions is True


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_switched_off_quantisation_is_no_argument(bits: str, mounted: Path) -> None:
    assert type(load(mounted, **{bits: False})) is LlamaForCausalLM


def test_quantising_while_loading_is_the_callers_choice(
    winner: Recipe, mounted: Path, saved: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    expected = AutoModelForCausalLM.from_pretrained(saved, quantization_config=config)
    assert_same(load(mounted, quantization_config=config), expected)


CLASSIFIER = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40}
KINDS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "three labels": (
        "Bert",
        "AutoModelForSequenceClassification",
        {
            **CLASSIFIER,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "id2label": {0: "no", 1: "maybe", 2: "yes"},  # one task, or its heads would not merge
        },
    ),
    "masks": (
        "Bert",
        "AutoModelForMaskedLM",
        {**CLASSIFIER, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "encoder and decoder": (
        "T5",
        "AutoModelForSeq2SeqLM",
        {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_architecture_has_its_own_auto_classes(
    kind: str, recipe: Spell, tmp_path: Path
) -> None:
    family, name, sizes = KINDS[kind]
    auto_class = getattr(transformers, name)
    model = seeded(getattr(transformers, f"{family}Config")(**sizes), auto_class)
    write_family(model, tmp_path, ("a", "b"), spread=0.1)
    spelled = recipe("linear", None, [str(tmp_path / "a"), str(tmp_path / "b")], weight=0.5)
    found = load(mount(spelled, tmp_path / "mounted"), auto_class)
    expected = auto_class.from_pretrained(save(spelled, tmp_path / "saved"))
    assert type(found) is type(expected)
    for (key, ours), theirs in zip(
        found.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key
    assert getattr(found.config, "num_labels", None) == getattr(expected.config, "num_labels", None)
    known = json.loads((tmp_path / "mounted" / "config.json").read_text())["auto_map"]
    assert ("AutoModelForSeq2SeqLM" in known) == (family == "T5")


@pytest.mark.parametrize("given", [{}, {"trust_remote_code": False}], ids=str)
@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModel, LlamaForCausalLM])
def test_without_trust_it_stops_instead_of_loading_something_else(
    auto_class: Any, given: dict[str, bool], mounted: Path
) -> None:
    with pytest.raises(OSError, match=r"no file named model\.safetensors.* in directory .*mounted"):
        auto_class.from_pretrained(mounted, **given)


class Absent(MetaPathFinder):
    """An environment without merge-plugins."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] == "merge_plugins":
            raise ModuleNotFoundError(f"No module named {name!r}")


def test_without_merge_plugins_the_error_says_what_to_install(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "merge_plugins"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ImportError, match="Run `pip install merge_plugins`"):
        load(mounted)


def test_loading_it_changes_no_other_model(mounted: Path, llamas: Mapping[str, str]) -> None:
    load(mounted)
    base = AutoModelForCausalLM.from_pretrained(llamas["base"], trust_remote_code=True)
    merged = load(mounted)
    assert type(base) is type(merged) is LlamaForCausalLM
    assert base.name_or_path == llamas["base"]
    assert not torch.equal(base.lm_head.weight, merged.lm_head.weight)


def test_what_is_loaded_can_be_saved_as_an_ordinary_checkpoint(
    mounted: Path, saved: Path, tmp_path: Path
) -> None:
    load(mounted).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "modeling_merge.py").exists()
    assert_same(
        AutoModelForCausalLM.from_pretrained(tmp_path / "again"),
        AutoModelForCausalLM.from_pretrained(saved),
    )


def test_a_pipeline_finds_model_and_tokenizer(mounted: Path, saved: Path) -> None:
    found = transformers.pipeline("text-generation", str(mounted), trust_remote_code=True)
    expected = transformers.pipeline("text-generation", str(saved))
    given = {"max_new_tokens": 5, "do_sample": False, "max_length": None}
    assert found("5 7 9", **given) == expected("5 7 9", **given)


@pytest.fixture
def movable(llamas: Mapping[str, str], recipe: Spell, tmp_path: Path) -> Path:
    """A folder with a base, an expert, and the mounted merge of both."""
    root = tmp_path / "first"
    for name in ("base", "math"):
        shutil.copytree(llamas[name], root / name)
    spelled = recipe("task_arithmetic", str(root / "base"), [str(root / "math")], weight=0.5)
    mount(spelled, root / "runs" / "merge")
    return root


def test_folder_and_models_can_move_together(movable: Path, tmp_path: Path) -> None:
    before = load(movable / "runs" / "merge")
    after = load(movable.rename(tmp_path / "second") / "runs" / "merge")
    assert_same(after, before)


def test_a_source_that_changed_is_an_error(movable: Path) -> None:
    folder, weights = movable / "runs" / "merge", movable / "math" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(MismatchError) as caught:
        load(folder)
    message = str(caught.value)
    assert f"{movable / 'math'} changed" in message
    assert str(movable / "base") not in message
    assert f"merge-plugins mount {folder / 'merge.yaml'} NEW_DIR" in message
    weights.write_bytes(whole)  # what counts is the content
    load(folder)


def test_a_recipe_that_changed_is_an_error(movable: Path) -> None:
    folder = movable / "runs" / "merge"
    text = (folder / "merge.yaml").read_text()
    (folder / "merge.yaml").write_text(text.replace("0.5", "0.6"))
    with pytest.raises(MismatchError, match=r"merge\.yaml, its data or a tokenizer changed"):
        load(folder)
    swapped = text.replace("base_model: ../../base", "base_model: ../../math")
    (folder / "merge.yaml").write_text(
        swapped.replace("- model: ../../math", "- model: ../../base")
    )
    with pytest.raises(MismatchError, match="changed"):
        load(folder)


def test_another_version_of_the_method_is_an_error(movable: Path) -> None:
    file = movable / "runs" / "merge" / "config.json"
    held = json.loads(file.read_text())
    held["merge_plugins"] |= {"digest": "0" * 12, "method": ["somebody", "0.0.1"]}
    file.write_text(json.dumps(held))
    with pytest.raises(MismatchError, match=r"it was made with somebody 0\.0\.1, here is merge_"):
        load(file.parent)


def test_a_config_that_does_not_know_its_merge_is_an_error(movable: Path) -> None:
    file = movable / "runs" / "merge" / "config.json"
    held = json.loads(file.read_text())
    del held["merge_plugins"]
    file.write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match="does not say what the merge was; mount the recipe"):
        load(file.parent)


def test_a_source_that_is_gone_is_named(movable: Path) -> None:
    shutil.rmtree(movable / "math")
    with pytest.raises(CheckpointError, match=r"no model '.*math': no such folder"):
        load(movable / "runs" / "merge")


def test_a_merge_that_cannot_be_made_leaves_no_folder(
    llamas: Mapping[str, str], checkpoint: Write, recipe: Spell, tmp_path: Path
) -> None:
    other = checkpoint({"w": torch.ones(2)})
    with pytest.raises(MismatchError):
        mount(
            recipe("linear", None, [llamas["base"], other], weight=0.5),
            tmp_path / "deep" / "mounted",
        )
    another = checkpoint({"w": torch.ones(2)})
    with pytest.raises(RecipeError, match=r"knows no model of type None"):
        mount(recipe("linear", None, [other, another], weight=0.5), tmp_path / "deep" / "mounted")
    assert not (tmp_path / "deep").exists()


def test_a_folder_that_is_not_empty_is_left_alone(winner: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MergeError, match="exists and is not empty; name a new folder"):
        mount(winner, tmp_path)


def test_the_command_prints_the_folder_and_the_digest(
    winner: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "merge.yaml").write_text(winner.to_yaml())
    assert main(["mount", str(tmp_path / "merge.yaml"), str(tmp_path / "mounted")]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'mounted'}: {identity.label(winner)}. Load it with trust_remote_code=True.\n"
    )
    assert main(["mount", str(tmp_path / "merge.yaml"), str(tmp_path / "mounted")]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_a_folder_on_the_hub_is_loaded_by_its_id(
    llamas: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def publish(name: str, folder: Path | str) -> None:
        root = tmp_path / "hub" / f"models--tiny--{name}"
        shutil.copytree(folder, root / "snapshots" / COMMIT)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)

    for name in ("base", "math"):
        publish(name, llamas[name])
    mapping = {
        "merge_method": "task_arithmetic",
        "base_model": "tiny/base",
        "models": [{"model": "tiny/math", "parameters": {"weight": 0.5}}],
    }
    publish("merge", mount(Recipe.from_mapping(mapping), tmp_path / "mounted"))
    where = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    found = load("tiny/merge", **where)
    assert_same(found, load_merged(Recipe.from_mapping(mapping)))
    assert found.name_or_path == "tiny/merge"


OWN_CONFIG = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"
"""
OWN_MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_code_of_its_own_keeps_it(
    llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    folders = [Path(shutil.copytree(llamas[name], tmp_path / name)) for name in ("math", "code")]
    for own in folders:
        (own / "configuration_own.py").write_text(OWN_CONFIG)
        (own / "modeling_own.py").write_text(OWN_MODEL)
        held = json.loads((own / "config.json").read_text()) | {"model_type": "own"}
        held["auto_map"] = {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        }
        (own / "config.json").write_text(json.dumps(held))
    spelled = recipe("linear", None, [str(own) for own in folders], weight=0.5)
    with pytest.raises(UntrustedCodeError, match=r"type own; .*mount with --trust-remote-code"):
        mount(spelled, tmp_path / "m")
    trusted = mount(spelled, tmp_path / "m", trust_remote_code=True)
    found, expected = load(trusted), load(save(spelled, tmp_path / "s"))
    assert type(found).__name__ == type(expected).__name__ == "OwnForCausalLM"
    assert torch.equal(found(IDS)[0], expected(IDS)[0])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_merge.AutoModelForCausalLM",
    }


def test_a_routed_merge_is_made_too_and_says_when_it_is_right(
    llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    experts = [llamas["math"], llamas["code"]]
    spelled = recipe(
        "twin_merging", llamas["base"], experts, router="fixed", router_weights=[0.9, 0.1]
    )
    with pytest.warns(MergeWarning, match="For such tasks use lm_eval --model merged"):
        found = load(mount(spelled, tmp_path / "mounted"))
    asked = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(found.generate(IDS, **asked), load_merged(spelled).generate(IDS, **asked))


POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
BEHIND = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
"""Git keeps no empty folder, so 2_Normalize is not there; sentence-transformers needs none."""
MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate(BEHIND.items())
]


@pytest.mark.parametrize("write", [mount, save])
def test_how_sentence_transformers_pools_comes_along(
    write: Callable[..., Path], llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(llamas["base"], tmp_path / "own"))
    (own / "1_Pooling").mkdir()
    (own / "modules.json").write_text(json.dumps(MODULES))
    (own / "config_sentence_transformers.json").write_text("{}")
    (own / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    spelled = recipe("linear", None, [str(own), llamas["math"]], weight=0.5)
    folder = write(spelled, tmp_path / "merge")
    assert json.loads((folder / "modules.json").read_text()) == MODULES
    assert json.loads((folder / "1_Pooling" / "config.json").read_text()) == POOLING
    assert (folder / "config_sentence_transformers.json").is_file()
    (own / "1_Pooling" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"1_Pooling/model\.safetensors is not a whole"):
        write(spelled, tmp_path / "another")
    shutil.rmtree(own / "1_Pooling")
    with pytest.raises(CheckpointError, match="names 1_Pooling, a Pooling, which is not there"):
        write(spelled, tmp_path / "another")
    assert not (tmp_path / "another").exists()
