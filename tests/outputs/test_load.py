"""In memory equals on disk: a live merge is bit for bit what loading the saved merge gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import seeded, write_family
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from merge_plugins import Recipe, load_merged, save
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.plugins import registry

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": {**SIZES, "head_dim": 8},
    "Gemma3": {**SIZES, "head_dim": 8, "sliding_window": 8},
    "GPT2": {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Mixtral": {**SIZES, "num_local_experts": 4},
    "Qwen2Moe": {**SIZES, **MOE, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**SIZES, **MOE, "head_dim": 8},
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = torch.tensor([[1, 5, 9, 2, 40, 17, 3, 3]])
REQUIRED = {"weight": 0.5, "t": 0.3}
LEARNING = ("adamerging", "fisher_merging", "regmean_merging", "cocktail")
FEWER = {"adamerging": {"steps": 3}}
"""Steps of learning: enough to differ."""
MIXES = {
    "ties": {"weight": 0.7, "density": 0.4},
    "dare_linear": {"weight": 0.5, "density": 0.5},
    "slerp_merging": {},
}

Family = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Save a tiny model of a family and two fine-tunes of it, once per kind."""
    made: dict[Any, dict[str, str]] = {}

    def make(
        name: str, dtype: torch.dtype = torch.bfloat16, *, tied: bool | None = None
    ) -> dict[str, str]:
        if (name, dtype, tied) in made:
            return made[name, dtype, tied]
        root = tmp_path_factory.mktemp(name)
        text = "Text" if name == "Gemma3" else ""
        own = {} if tied is None else {"tie_word_embeddings": tied}
        config = getattr(transformers, f"{name}{text}Config")(**FAMILIES[name], **own)
        model = seeded(config, AutoModelForCausalLM, dtype=dtype)
        made[name, dtype, tied] = write_family(model, root, spread=0.05)
        return made[name, dtype, tied]

    return make


def spelled(method: str, models: Mapping[str, str], **given: Any) -> Recipe:
    """Merge the two fine-tunes, or as many as the method takes."""
    known = registry().get(method)
    n = min(known.max_experts or 2, 2)
    required = {p.name: REQUIRED[p.name] for p in known.parameters.values() if p.required}
    keys = ("dtype", "out_dtype", "seed", "data")
    top = {key: given.pop(key) for key in keys if key in given}
    base = {"base_model": models["base"]} if known.needs_base else {}
    entries = [{"model": models[name]} for name in ("a", "b")[:n]]
    parameters = {**required, **given}
    return Recipe.from_mapping(
        {"merge_method": method, "models": entries, "parameters": parameters, **base, **top}
    )


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def check(recipe: Recipe, folder: Path, **options: Any) -> torch.nn.Module:
    """Compare the live merge with the saved one, loaded as anyone would load it."""
    live = load_merged(recipe, **options)
    written = AutoModelForCausalLM.from_pretrained(save(recipe, folder), **options)
    assert type(live) is type(written)
    ours, theirs = live.state_dict(), written.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype, name
        assert torch.equal(weight, theirs[name]), name
    assert torch.equal(logits(live), logits(written))
    assert torch.isfinite(logits(live)).all()
    assert not live.training
    return live


@pytest.mark.parametrize("method", [n for n, m in registry().methods.items() if not m.is_routed])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_every_method_in_memory_equals_on_disk(
    method: str, stored: torch.dtype, family: Family, llamas: Mapping[str, str], tmp_path: Path
) -> None:
    recipe = spelled(method, family("Llama", stored))
    if method in LEARNING:
        with_tokenizer = {"base": llamas["base"], "a": llamas["math"], "b": llamas["code"]}
        dtype = str(stored).removeprefix("torch.")
        given = {"data": texts(tmp_path), "out_dtype": dtype, **FEWER.get(method, {})}
        recipe = spelled(method, with_tokenizer, **given)
    live = check(recipe, tmp_path / "merge")
    assert live.dtype == stored


def texts(folder: Path) -> str:
    """Write a few texts to learn from."""
    rows = [{"text": " ".join(map(str, range(n, n + 9)))} for n in range(0, 40, 5)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "texts.jsonl")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_memory_equals_on_disk(
    name: str, dtype: torch.dtype, family: Family, tmp_path: Path
) -> None:
    method = list(MIXES)[(list(FAMILIES).index(name) + DTYPES.index(dtype)) % len(MIXES)]
    recipe = spelled(method, family(name, dtype), **MIXES[method])
    live = check(recipe, tmp_path / "merge")
    assert live.dtype == dtype
    base = AutoModelForCausalLM.from_pretrained(family(name, dtype)["base"])
    assert not torch.equal(logits(live), logits(base))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma3", "GPT2", "Mixtral"])
def test_tied_and_untied_heads_stay_what_they_are(
    name: str, tied: bool, family: Family, tmp_path: Path
) -> None:
    models = family(name, tied=tied)
    live = check(spelled("ties", models, **MIXES["ties"]), tmp_path / "merge")
    shares = live.get_input_embeddings().weight is live.get_output_embeddings().weight
    assert shares == tied
    (file,) = (tmp_path / "merge").glob("*.safetensors")
    assert ("lm_head.weight" in load_file(file)) == (not tied)


@pytest.mark.parametrize("wanted", [*DTYPES, "auto", "float32"], ids=str)
def test_the_dtype_asked_for_is_the_dtype_loaded(
    wanted: Any, family: Family, tmp_path: Path
) -> None:
    live = check(spelled("linear", family("Llama")), tmp_path / "merge", dtype=wanted)
    assert live.dtype == {"auto": torch.bfloat16, "float32": torch.float32}.get(wanted, wanted)


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_the_recipes_dtype_is_the_merges(key: str, family: Family, tmp_path: Path) -> None:
    recipe = spelled("linear", family("Llama"), **{key: "float16"})
    for options in ({}, {"dtype": "auto"}):
        live = check(recipe, tmp_path / f"merge{len(options)}", **options)
        assert live.dtype == torch.float16


def test_a_merge_in_float32_can_be_loaded_in_bfloat16(family: Family, tmp_path: Path) -> None:
    recipe = spelled("linear", family("Llama"), out_dtype="float32")
    live = check(recipe, tmp_path / "merge", dtype=torch.bfloat16)
    assert live.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_a_device_map_places_the_merge(device_map: Any, family: Family, tmp_path: Path) -> None:
    for name in ("Llama", "Mixtral"):
        recipe = spelled("ties", family(name), **MIXES["ties"])
        check(recipe, tmp_path / name, device_map=device_map)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_layers_offloaded_to_disk_are_the_merges_and_not_the_bases(
    name: str, family: Family, tmp_path: Path
) -> None:
    recipe = spelled("task_arithmetic", family(name, torch.float32))
    written = AutoModelForCausalLM.from_pretrained(save(recipe, tmp_path / "merge"))
    places = {key.rpartition(".")[0]: "cpu" for key in written.state_dict()}
    first, last = (["model.layers.0", "model.norm"], ["transformer.h.0", "transformer.ln_f"])[
        name == "GPT2"
    ]
    places |= {key: "disk" for key in places if key.startswith((first, last))}
    live = load_merged(recipe, device_map=places, offload_folder=str(tmp_path / "offload"))
    assert any(weight.device.type == "meta" for weight in live.parameters())
    assert torch.equal(logits(live), logits(written))


def test_the_generation_config_comes_along(llamas: Mapping[str, str], tmp_path: Path) -> None:
    models = {"base": llamas["base"], "a": llamas["math"], "b": llamas["code"]}
    recipe = spelled("task_arithmetic", models)
    live = check(recipe, tmp_path / "merge")
    assert live.generation_config.eos_token_id == [2, 3]
    assert live.generation_config.repetition_penalty == 1.25
    assert live.name_or_path == live.config._name_or_path == llamas["base"]
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merge")
    ours = live.generation_config.to_dict()
    assert ours == written.generation_config.to_dict()
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(live.generate(IDS, **options), written.generate(IDS, **options))


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, transformers.LlamaForCausalLM])
def test_a_class_may_be_named(auto_class: Any, family: Family) -> None:
    live = load_merged(spelled("linear", family("Llama")), auto_class)
    assert type(live) is transformers.LlamaForCausalLM


def test_weights_the_merge_lacks_are_refused_and_never_random(family: Family) -> None:
    recipe = spelled("linear", family("Llama"))
    expected = r"LlamaForSequenceClassification needs 1 weights .* first score.weight.*random"
    with pytest.raises(MismatchError, match=expected):
        load_merged(recipe, AutoModelForSequenceClassification)
    deeper = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 3})
    with pytest.raises(MismatchError, match=r"needs 9 weights .* first model.layers.2"):
        load_merged(recipe, config=deeper)


def test_weights_of_another_size_are_refused(family: Family) -> None:
    wider = transformers.LlamaConfig(**{**SIZES, "intermediate_size": 44})
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises((MismatchError, RuntimeError), match=r"mlp|size mismatch|mismatched"):
            load_merged(spelled("linear", family("Llama")), config=wider, **options)


@pytest.mark.parametrize(
    "argument",
    [
        *("gguf_file", "variant", "use_safetensors", "revision", "subfolder"),
        *("cache_dir", "local_files_only", "token", "use_auth_token"),
    ],
)
def test_arguments_that_find_files_do_not_apply(argument: str, family: Family) -> None:
    with pytest.raises(RecipeError, match=rf"{argument}= does not apply to a merge"):
        load_merged(spelled("linear", family("Llama")), **{argument: "main"})


def test_a_quantised_config_is_refused(family: Family) -> None:
    config = transformers.LlamaConfig(**SIZES, quantization_config={"quant_method": "gptq"})
    with pytest.raises(RecipeError, match="config= is of a quantised model"):
        load_merged(spelled("linear", family("Llama")), config=config)


def test_a_class_without_such_a_model_is_refused(family: Family) -> None:
    expected = "AutoModelForSpeechSeq2Seq knows no model for LlamaConfig"
    with pytest.raises(RecipeError, match=expected):
        load_merged(spelled("linear", family("Llama")), transformers.AutoModelForSpeechSeq2Seq)


OWN = """
from transformers import LlamaForCausalLM

class OwnForCausalLM(LlamaForCausalLM):
    pass
"""


def test_code_that_comes_with_a_model_runs_only_when_trusted(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    models = family("Llama")
    own = Path(shutil.copytree(models["base"], tmp_path / "own"))
    (own / "modeling_own.py").write_text(OWN)
    config = json.loads((own / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (own / "config.json").write_text(json.dumps(config))
    recipe = spelled("task_arithmetic", {**models, "base": str(own)})
    assert type(load_merged(recipe, trust_remote_code=True)).__name__ == "OwnForCausalLM"
    assert type(load_merged(recipe, trust_remote_code=False)) is transformers.LlamaForCausalLM
    folder = save(recipe, tmp_path / "merge")
    assert (folder / "modeling_own.py").read_text() == OWN


def converted(
    folder: str, target: Path, change: Callable[[dict[str, Tensor], Path], object], **config: Any
) -> str:
    """Copy a model, its weights written by ``change``."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    change(load_file(Path(folder) / "model.safetensors"), target)
    held = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**held, **config}))
    return str(target)


def as_bin(weights: dict[str, Tensor], folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def as_old_bin(weights: dict[str, Tensor], folder: Path) -> None:
    frequencies = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    for i in range(2):
        weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = frequencies
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def as_shards(weights: dict[str, Tensor], folder: Path) -> None:
    weight_map = {}
    for i, (name, weight) in enumerate(weights.items()):
        file = f"model-{i % 3 + 1:05}-of-00003.safetensors"
        weight_map[name] = file
        held = load_file(folder / file) if (folder / file).exists() else {}
        save_file({**held, name: weight}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("change", [as_bin, as_old_bin, as_shards])
@pytest.mark.parametrize("whose", ["base", "a"])
def test_every_file_layout_merges_to_the_same_model(
    change: Any, whose: str, family: Family, tmp_path: Path
) -> None:
    models = family("Llama", torch.float32)
    plain = load_merged(spelled("ties", models, **MIXES["ties"]))
    other = {**models, whose: converted(models[whose], tmp_path / "other", change)}
    live = check(spelled("ties", other, **MIXES["ties"]), tmp_path / "merge")
    assert torch.equal(logits(live), logits(plain))


def test_old_buffers_in_every_model_do_not_disturb(family: Family, tmp_path: Path) -> None:
    models = family("Llama", torch.float32)
    old = {n: converted(f, tmp_path / n, as_old_bin) for n, f in models.items()}
    live = check(spelled("linear", old), tmp_path / "merge")
    assert torch.equal(logits(live), logits(load_merged(spelled("linear", models))))


def test_a_float32_expert_merges_into_a_bfloat16_base(family: Family, tmp_path: Path) -> None:
    models = family("Llama")

    def as_float32(weights: dict[str, Tensor], folder: Path) -> None:
        save_file({n: w.float() for n, w in weights.items()}, folder / "model.safetensors")

    expert = converted(models["a"], tmp_path / "a", as_float32, dtype="float32")
    live = check(spelled("task_arithmetic", {**models, "a": expert}), tmp_path / "merge")
    assert live.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "GPT2"])
def test_a_tied_expert_merges_into_an_untied_base(
    name: str, family: Family, tmp_path: Path
) -> None:
    base, tied = family(name, tied=False)["base"], family(name, tied=True)["a"]
    models = {"base": base, "a": tied, "b": family(name, tied=False)["b"]}
    live = check(spelled("task_arithmetic", models), tmp_path / "merge")
    head, embedding = (
        model.get_output_embeddings().weight.float()
        for model in map(AutoModelForCausalLM.from_pretrained, (base, tied))
    )
    other = AutoModelForCausalLM.from_pretrained(models["b"]).get_output_embeddings().weight
    expected = embedding + other.float() - head
    assert torch.allclose(live.get_output_embeddings().weight.float(), expected, atol=0.02)


@pytest.mark.parametrize("whose", ["base", "a", "both"])
def test_an_old_bin_that_stores_a_tied_head_twice_changes_nothing(
    whose: str, family: Family, tmp_path: Path
) -> None:
    models = family("Qwen2", torch.float32, tied=True)

    def twice(weights: dict[str, Tensor], folder: Path) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        torch.save(weights, folder / "pytorch_model.bin")

    names = ("base", "a") if whose == "both" else (whose,)
    old = {name: converted(models[name], tmp_path / name, twice) for name in names}
    live = check(spelled("task_arithmetic", {**models, **old}), tmp_path / "merge")
    assert live.get_input_embeddings().weight is live.get_output_embeddings().weight
    assert torch.equal(logits(live), logits(load_merged(spelled("task_arithmetic", models))))


def test_a_merge_can_be_loaded_twice_and_side_by_side(family: Family) -> None:
    recipe = spelled("dare_linear", family("Llama"), density=0.5)
    first, second = load_merged(recipe), load_merged(recipe)
    assert torch.equal(logits(first), logits(second))
    first.get_input_embeddings().weight.data.zero_()
    assert torch.equal(logits(second), logits(load_merged(recipe)))
