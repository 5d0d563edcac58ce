"""A LoRA adapter added as its model is read gives what PEFT's merge_and_unload gives."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from merge_plugins import Recipe, identity, load_merged, merged_tensors, save
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, MergeError, MismatchError, RecipeError
from merge_plugins.recipe import Lora
from merge_plugins.sources.adapter import Adapter
from merge_plugins.sources.lora import PANEL, with_updates

IDS = torch.tensor([[1, 5, 9, 2, 40, 17, 3, 3]])
LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 8}
GPT2 = {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 4, "fan_in_fan_out": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", LINEAR),
    "rank-stabilised": ("Llama", {**LINEAR, "use_rslora": True}),
    "patterns": (
        "Llama",
        {**LINEAR, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*v_proj": 32}},
    ),
    "every linear layer": ("Llama", {**LINEAR, "target_modules": "all-linear"}),
    "DoRA": ("Llama", {**LINEAR, "use_dora": True}),
    "embedding and replaced head": (
        "Llama",
        {**LINEAR, "target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "biases": ("Qwen2", {**LINEAR, "bias": "lora_only"}),
    "Conv1D": ("GPT2", GPT2),
    "Conv1D whose config does not say so": ("GPT2", {**GPT2, "fan_in_fan_out": False}),
}
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2_SIZES = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

Adapted = Callable[..., tuple[str, str]]


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """Save a tiny model and an adapter that changes all it targets; return both folders."""
    root = tmp_path_factory.mktemp("lora")
    made: dict[str, tuple[str, str]] = {}

    def make(case: str, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
        key = f"{case}-{dtype}".replace(" ", "-")
        if key in made:
            return made[key]
        family, settings = CASES[case]
        sizes = GPT2_SIZES if family == "GPT2" else SIZES
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**sizes, tie_word_embeddings=False)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.save_pretrained(root / key)
        held = {"fan_in_fan_out": family == "GPT2", **settings}
        live = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **held))
        with torch.no_grad():
            for weight in (p for p in live.parameters() if p.requires_grad):
                weight.add_(0.1 * torch.randn_like(weight))
        live.save_pretrained(root / f"{key}-adapter", save_embedding_layers=False)
        config_file = root / f"{key}-adapter" / "adapter_config.json"
        saved = json.loads(config_file.read_text())
        config_file.write_text(json.dumps({**saved, **{k: held[k] for k in ("fan_in_fan_out",)}}))
        made[key] = str(root / key), str(root / f"{key}-adapter")
        return made[key]

    return make


def by_peft(model: str, adapter: str, folder: Path) -> dict[str, Tensor]:
    live = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    live.merge_and_unload().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def alone(ref: Any, **top: Any) -> Recipe:
    held = {"merge_method": "passthrough", "models": [{"model": ref}], **top}
    return Recipe.from_mapping(held)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_gives_what_peft_gives(case: str, adapted: Adapted, tmp_path: Path) -> None:
    model, adapter = adapted(case)
    expected = by_peft(model, adapter, tmp_path)
    found = merged_tensors(alone(f"{model}+{adapter}"))
    assert found.keys() == expected.keys()
    changed = 0
    for name, weight in load_file(Path(model, "model.safetensors")).items():
        merged = found[name][...]
        torch.testing.assert_close(merged, expected[name], rtol=0, atol=1e-6)
        changed += not torch.equal(merged, weight)
    assert changed >= 4


def test_an_adapter_of_a_half_precision_model_is_rounded_once_as_peft_does(
    adapted: Adapted, tmp_path: Path
) -> None:
    model, adapter = adapted("plain", torch.bfloat16)
    expected = by_peft(model, adapter, tmp_path)
    found = merged_tensors(alone(f"{model}+{adapter}"))
    assert all(torch.equal(found[name][...], weight) for name, weight in expected.items())
    wide = merged_tensors(alone(f"{model}+{adapter}", out_dtype="float32"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(wide[name][...], expected[name].float())  # no rounding in between


@pytest.mark.parametrize("block", [1 << 8, 1 << 19])
def test_the_bits_do_not_depend_on_what_is_asked_for(
    block: int, adapted: Adapted, with_threads: Callable[[int], None]
) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    for case in ("plain", "DoRA"):
        model, adapter = adapted(case)
        tensor = open_merge(alone(f"{model}+{adapter}"), block=block).tensors()[name]
        whole = tensor[...]
        (source,) = tensor.planned.experts
        assert torch.equal(source.view(), whole)
        assert torch.equal(tensor[5:21, 7:60], whole[5:21, 7:60])
        with_threads(3)
        assert torch.equal(tensor[...], whole)


def test_panels_are_smaller_than_the_weights_above() -> None:
    assert SIZES["vocab_size"] > PANEL  # or the tests would never see a second one


def test_adapters_merge_live_and_on_disk_alike(adapted: Adapted, tmp_path: Path) -> None:
    model, adapter = adapted("plain", torch.bfloat16)
    recipe = Recipe.from_mapping(
        {
            "merge_method": "ties",
            "base_model": model,
            "models": [{"model": {"model": model, "lora": adapter}, "parameters": {"weight": 0.8}}],
            "parameters": {"density": 0.5},
        }
    )
    live = load_merged(recipe)
    stored = AutoModelForCausalLM.from_pretrained(save(recipe, tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(live(IDS).logits, stored(IDS).logits)
    assert identity.digest(Recipe.load(tmp_path / "saved")) == identity.digest(recipe)


def test_every_spelling_of_an_adapted_model_is_one(adapted: Adapted, tmp_path: Path) -> None:
    model, adapter = adapted("plain")
    expected = Lora(model, adapter)
    for ref in (
        f"{model}+{adapter}",
        {"model": model, "lora": adapter},
        {"model": {"path": model}, "lora": {"path": adapter}},
        {"model": os.path.relpath(model), "lora": os.path.relpath(adapter)},
    ):
        assert alone(ref).models[0].ref == expected
    short = {"method": "linear", "models": f"{model}++{adapter}:0.25+{model}:0.75"}
    found = Recipe.from_model_args(short)
    assert [m.ref for m in found.models] == [expected, model]
    assert [m.parameters["weight"].as_yaml() for m in found.models] == [0.25, 0.75]
    assert Recipe.from_mapping(found.as_dict()) == found
    strange = tmp_path / "ad+apter"
    shutil.copytree(adapter, strange)
    named = alone({"model": model, "lora": str(strange)})
    assert named.as_dict()["models"][0]["model"] == {"model": model, "lora": str(strange)}
    assert Recipe.from_mapping(named.as_dict()) == named


def test_the_digest_knows_every_byte_of_an_adapter(adapted: Adapted, tmp_path: Path) -> None:
    model, adapter = adapted("plain")
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    assert identity.digest(alone(f"{model}+{copy}")) == identity.digest(alone(f"{model}+{adapter}"))
    assert identity.digest(alone(f"{model}+{copy}")) != identity.digest(alone(model))
    tensors = load_file(copy / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, copy / "adapter_model.safetensors")
    assert identity.digest(alone(f"{model}+{copy}")) != identity.digest(alone(f"{model}+{adapter}"))


def test_an_adapter_may_be_a_bin_file(adapted: Adapted, tmp_path: Path) -> None:
    model, adapter = adapted("plain")
    shutil.copy(Path(adapter, "adapter_config.json"), tmp_path)
    torch.save(
        load_file(Path(adapter, "adapter_model.safetensors")), tmp_path / "adapter_model.bin"
    )
    found, expected = (merged_tensors(alone(f"{model}+{a}")) for a in (tmp_path, adapter))
    assert all(torch.equal(found[name][...], expected[name][...]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of type IA3 is more than a low-rank product. Merge"),
        ({"target_parameters": ["mlp.w"]}, "with target_parameters is more than a low-rank"),
        ({"lora_bias": True}, "with lora_bias is more than"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' also changed the model's own"),
    ],
)
def test_what_is_not_lora_is_refused_by_name(
    changes: Mapping[str, Any], message: str, adapted: Adapted, tmp_path: Path
) -> None:
    model, adapter = adapted("plain")
    shutil.copytree(adapter, tmp_path / "copy")
    file = tmp_path / "copy" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        open_merge(alone(f"{model}+{tmp_path / 'copy'}"))


def with_settings(adapter: str, folder: Path, **settings: Any) -> str:
    """Copy an adapter with other settings in its adapter_config.json."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha_pattern": {"(a+)+$": "8"}}, "alpha in adapter_config.json is a number, not '8'"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern is a mapping, not \['q_proj'\]"),
        ({"alpha_pattern": {"(": 8}}, r"alpha_pattern: '\(' is no regular expression"),
        ({"alpha_pattern": {r"(.)\1": 8}}, r"alpha_pattern: .*no way to match .* Name the modules"),
        ({"lora_alpha": {}}, r"alpha in adapter_config.json is a number, not \{\}"),
        ({"lora_alpha": 10**400}, "alpha in adapter_config.json is a number, not 1000"),
        ({"lora_alpha": math.nan}, "alpha in adapter_config.json is a number, not nan"),
    ],
)
def test_settings_of_another_kind_are_named(
    changes: Mapping[str, Any], message: str, adapted: Adapted, tmp_path: Path
) -> None:
    model, adapter = adapted("plain")
    folder = with_settings(adapter, tmp_path / "copy", **changes)
    with pytest.raises(CheckpointError, match=f"(?s){folder}: .*{message}"):
        open_merge(alone(f"{model}+{folder}"))


def test_no_expression_takes_longer_than_its_length(adapted: Adapted, tmp_path: Path) -> None:
    model, adapter = adapted("plain")
    slow = {"(([a-z_.0-9]+)+)+!": 8, "((((.*)*)*)*)*!": 8, "(.|.)" * 40 + "!": 8}
    folder = with_settings(adapter, tmp_path / "copy", alpha_pattern=slow)
    before = time.process_time()
    found, expected = (merged_tensors(alone(f"{model}+{a}")) for a in (folder, adapter))
    assert time.process_time() - before < 5  # Python's re would not have ended yet
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(found[name][...], expected[name][...])


@pytest.mark.parametrize(
    ("case", "word"),
    [("plain", "lora_A"), ("plain", "lora_B"), ("DoRA", "lora_B"), ("DoRA", "magnitude")],
)
def test_damage_in_an_adapter_names_the_adapter(
    case: str, word: str, adapted: Adapted, tmp_path: Path
) -> None:
    model, adapter = adapted(case)
    held = load_file(Path(adapter, "adapter_model.safetensors"))
    name = next(name for name in held if word in name)
    damaged = held[name].clone()
    damaged.view(-1)[3] = torch.nan
    folder = broken(adapter, tmp_path / "copy", **{word: damaged})
    weight = "model.layers.0.mlp.down_proj.weight"
    mean: dict[str, Any] = {"merge_method": "linear", "models": [f"{model}+{folder}", model]}
    mean["parameters"] = {"weight": 0.5}
    for recipe in (alone(f"{model}+{folder}"), Recipe.from_mapping(mean)):
        message = rf"{folder}/adapter_model\.safetensors: {re.escape(name)} holds NaN"
        with pytest.raises(CheckpointError, match=message):
            merged_tensors(recipe)[weight][...]


def test_an_adapter_that_was_cut_off_is_named_before_it_is_read(
    adapted: Adapted, tmp_path: Path
) -> None:
    model, adapter = adapted("plain")
    folder = broken(adapter, tmp_path / "copy")
    tensors = merged_tensors(alone(f"{model}+{folder}"))
    os.truncate(tmp_path / "copy" / "adapter_model.safetensors", 64)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors changed while"):
        tensors["model.layers.0.self_attn.q_proj.weight"][...]


def broken(adapter: str, folder: Path, **tensors: Tensor | None) -> str:
    """Copy an adapter with some tensors of its first module replaced, or dropped."""
    shutil.copytree(adapter, folder)
    held = load_file(folder / "adapter_model.safetensors")
    for word, tensor in tensors.items():
        name = next(name for name in held if word in name)
        del held[name]
        held |= {} if tensor is None else {name: tensor}
    save_file(held, folder / "adapter_model.safetensors")
    return str(folder)


def test_an_adapter_that_does_not_fit_is_refused_by_name(adapted: Adapted, tmp_path: Path) -> None:
    model, adapter = adapted("plain")

    def refused(error: type[MergeError], message: str, folder: str, ref: str = model) -> None:
        with pytest.raises(error, match=message):
            open_merge(alone(f"{ref}+{folder}"))

    wide = broken(adapter, tmp_path / "wide", lora_A=torch.ones(4, 33))
    refused(MismatchError, r"the adapter's model.layers.\S+ is \[\d+, 33\]", wide)
    empty = broken(adapter, tmp_path / "empty", lora_A=torch.ones(0, 32), lora_B=torch.ones(32, 0))
    refused(CheckpointError, "has rank 0", empty)
    short = broken(adapted("DoRA")[1], tmp_path / "short", magnitude=torch.ones(3))
    refused(MismatchError, "Is it an adapter of this model", short, adapted("DoRA")[0])
    half = broken(adapter, tmp_path / "half", lora_B=None)
    refused(CheckpointError, r"has no 'lora_B'", half)
    gpt2, _ = adapted("Conv1D")
    refused(MismatchError, r"which the model has not; its weights look like 'lm", adapter, gpt2)
    refused(CheckpointError, "is no LoRA adapter: it needs adapter_config.json", model)
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter, not a model\. Name the model"):
        open_merge(alone(adapter))
    odd = tmp_path / "odd"
    shutil.copytree(adapter, odd)
    save_file(
        {"base_model.model.x.lora_C.weight": torch.ones(2)}, odd / "adapter_model.safetensors"
    )
    refused(CheckpointError, r"x.lora_C.weight is more than a low-rank product", str(odd))
    save_file({}, odd / "adapter_model.safetensors")
    refused(CheckpointError, "the adapter holds no weights", str(odd))


def test_one_plus_adds_one_adapter(adapted: Adapted) -> None:
    model, adapter = adapted("plain")
    with pytest.raises(RecipeError, match=r"one '\+' adds an adapter; write \{model: …, lora: …\}"):
        alone(f"{model}+{adapter}+{adapter}")
    twice = {"model": {"model": model, "lora": adapter}, "lora": adapter}
    name = "model.layers.0.self_attn.q_proj.weight"
    own = load_file(Path(model, "model.safetensors"))[name]
    once, both = (merged_tensors(alone(ref))[name][...] for ref in (f"{model}+{adapter}", twice))
    torch.testing.assert_close(both - own, 2 * (once - own), rtol=0, atol=1e-6)


def test_a_checkpoint_without_its_prefix_is_found(adapted: Adapted) -> None:
    _, adapter = adapted("Conv1D")
    model, _ = adapted("Conv1D")
    stored = open_merge(alone(model)).plan.donor
    short = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    found = with_updates(Adapter(Path(adapter)), short)
    assert type(found["h.0.attn.c_attn.weight"]) is not type(short["h.0.attn.c_attn.weight"])


@pytest.mark.parametrize("family", ["llama-fp32", "qwen2-bf16"])
def test_mergekit_gives_the_same_bits(family: str, shared_fixtures: Path) -> None:
    root = shared_fixtures / "mergekit"
    tiny, expected = root / "tiny" / family, root / "expected" / family / "feat_lora"
    recipe = Recipe.from_mapping(
        {
            "merge_method": "task_arithmetic",
            "base_model": str(tiny / "base"),
            "dtype": "float32" if family.endswith("32") else "bfloat16",
            "models": [f"{tiny / 'base'}+{tiny / 'lora_a'}", str(tiny / "ft_b")],
            "parameters": {"weight": 0.5},
        }
    )
    found = merged_tensors(recipe)
    for name, weight in load_file(expected / "model.safetensors").items():
        assert torch.equal(found[name][...], weight), name
