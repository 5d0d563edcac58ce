"""A live model that is overwritten equals a fresh load of the other merge, bit for bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import SMALL, edit, rewrite, seeded, write_family
from transformers import AutoModelForCausalLM

from merge_plugins import MergeError, Recipe, load_merged, overwrite
from merge_plugins.errors import CheckpointError, MismatchError

EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
HEAD = {"head_dim": 8}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DEEPSEEK = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "Llama untied": ("LlamaConfig", {"tie_word_embeddings": False}),
    "Qwen2": ("Qwen2Config", {}),
    "Phi-3": ("Phi3Config", TOKENS),
    "Gemma 3": ("Gemma3TextConfig", {**HEAD, "sliding_window": 8}),
    "GPT-2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**EXPERTS, **HEAD}),
    "Mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "OLMoE": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, **HEAD}),
    "DeepSeek-V3": ("DeepseekV3Config", DEEPSEEK),
}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.5},
    "slerp": {"t": 0.3},
    "ties": {"weight": 0.7, "density": 0.4},
    "dare_linear": {"weight": 0.5, "density": 0.5},
}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Write a tiny model of a family and two fine-tunes of it, once."""
    made: dict[str, dict[str, str]] = {}

    def make(name: str) -> dict[str, str]:
        if name not in made:
            kind, own = FAMILIES[name]
            sizes = {"vocab_size": 64} if name == "GPT-2" else SMALL
            config = getattr(transformers, kind)(**{**sizes, **own})
            model = seeded(config, AutoModelForCausalLM, dtype=torch.bfloat16)
            made[name] = write_family(model, tmp_path_factory.mktemp("family"), spread=0.05)
        return made[name]

    return make


def spelt(method: str, models: Mapping[str, str], **given: Any) -> Recipe:
    keys = {key: given.pop(key) for key in ("dtype", "out_dtype", "data") if key in given}
    experts = ["a"] if method == "slerp" else ["a", "b"]
    return Recipe.from_mapping(
        {
            "merge_method": method,
            "base_model": models["base"],
            "models": [models[name] for name in experts],
            "parameters": {**METHODS.get(method, {}), **given},
            **keys,
        }
    )


def described(model: Any) -> dict[str, Any]:
    """Everything about a model that is no weight."""
    return {
        "class": type(model),
        "config": model.config.to_dict(),
        "names": (model.name_or_path, model.config._name_or_path),
        "generation": model.generation_config.to_dict(),
        "settled": model.merge_settled,
        "training": model.training,
        "gradients": [weight.grad is None for weight in model.parameters()],
    }


def is_equal(found: Any, wanted: Any) -> None:
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype, name
        assert torch.equal(weight, theirs[name]), name
    for (name, buffer), (_, other) in zip(
        found.named_buffers(), wanted.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, other), name
    assert described(found) == described(wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_place_equals_a_fresh_load(
    name: str, family: Callable[[str], dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    models = family(name)
    live = AutoModelForCausalLM.from_pretrained(models["base"])
    homes = [weight.data_ptr() for weight in live.parameters()]
    for method in METHODS:
        recipe = spelt(method, models)
        assert overwrite(live, recipe) is live
        is_equal(live, load_merged(recipe))
    assert homes == [weight.data_ptr() for weight in live.parameters()]
    assert not [each for each in caplog.messages if "loaded anew" in each]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["Llama tied", "Qwen3-MoE", "DeepSeek-V3"])
def test_the_live_models_dtype_is_kept(
    name: str, dtype: torch.dtype, family: Callable[[str], dict[str, str]]
) -> None:
    recipe = spelt("ties", family(name), out_dtype="float32")
    live = load_merged(spelt("linear", family(name)), dtype=dtype)
    assert overwrite(live, recipe) is live
    is_equal(live, load_merged(recipe, dtype=dtype))


def test_after_training_it_is_a_fresh_load(family: Callable[[str], dict[str, str]]) -> None:
    models = family("Llama tied")
    live = load_merged(spelt("linear", models), dtype=torch.float32).train()
    optimizer = torch.optim.SGD(live.parameters(), lr=0.1)
    ids = torch.tensor([[1, 5, 9, 2]])
    live(ids, labels=ids).loss.backward()
    optimizer.step()
    assert overwrite(live, spelt("ties", models)) is live
    is_equal(live, load_merged(spelt("ties", models), dtype=torch.float32))
    assert all(weight.requires_grad for weight in live.parameters())


def test_a_model_of_a_class_without_a_head_is_one_again(
    family: Callable[[str], dict[str, str]],
) -> None:
    recipe = spelt("ties", family("Mixtral"))
    live = transformers.AutoModel.from_pretrained(family("Mixtral")["base"])
    assert overwrite(live, recipe) is live
    wanted = load_merged(recipe, transformers.AutoModel)
    assert torch.equal(live.embed_tokens.weight, wanted.embed_tokens.weight)
    assert all(
        torch.equal(a, b) for a, b in zip(live.parameters(), wanted.parameters(), strict=True)
    )


def test_what_a_method_settles_on_and_the_generation_config_come_along(
    llamas: Mapping[str, str], tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": "1 2 3 4"}) for _ in range(2)))
    models = {"base": llamas["base"], "a": llamas["math"], "b": llamas["code"]}
    live = load_merged(spelt("linear", models))
    live.generation_config.eos_token_id = 7
    recipe = spelt("cocktail", models, data=str(texts))
    assert overwrite(live, recipe) is live
    assert live.merge_settled["merge_method"] == "linear"
    assert live.generation_config.eos_token_id == [2, 3]
    is_equal(live, load_merged(recipe))


ANEW: dict[str, Callable[[Any], Any]] = {
    "its rotary embedding depends": lambda models: load_merged(spelt("linear", models["dynamic"])),
    "is offloaded": lambda models: offloaded(models),
    "other weights of the live model are tied": lambda models: untied(models),
    "rms_norm_eps is": lambda models: eps(models),
}


def offloaded(models: Mapping[str, Any]) -> Any:
    places = {f"model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb", "layers.0")}
    places |= {"lm_head": "cpu", "model.layers.1": "disk"}
    recipe = spelt("linear", models)
    return load_merged(recipe, device_map=places, offload_folder=models["folder"])


def untied(models: Mapping[str, str]) -> Any:
    live = load_merged(spelt("linear", models))
    live.lm_head.weight = torch.nn.Parameter(live.lm_head.weight.detach().clone())
    return live


def eps(models: Mapping[str, str]) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(models["base"], rms_norm_eps=0.1)


@pytest.fixture
def tied(family: Callable[[str], dict[str, str]], tmp_path: Path) -> dict[str, Any]:
    """A tied Llama, and its like with a rotary embedding that grows."""
    models = family("Llama tied")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = {name: str(shutil.copytree(models[name], tmp_path / name)) for name in models}
    for folder in dynamic.values():
        edit(folder, rope_parameters=rope)
    return {**models, "dynamic": dynamic, "folder": str(tmp_path / "offload")}


@pytest.mark.parametrize("reason", ANEW)
def test_what_cannot_be_overwritten_is_loaded_anew_and_says_so(
    reason: str, tied: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    live = ANEW[reason](tied)
    recipe = spelt("ties", tied["dynamic"] if "rotary" in reason else tied)
    found = overwrite(live, recipe, device_map=None)
    assert found is not live
    is_equal(found, load_merged(recipe))
    (said,) = [each for each in caplog.messages if "loaded anew" in each]
    assert reason in said


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
def test_a_quantised_model_is_loaded_anew_as_it_was(
    tied: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    how = transformers.BitsAndBytesConfig(load_in_8bit=True)
    live = load_merged(spelt("linear", tied), quantization_config=how)
    recipe, ids = spelt("ties", tied), torch.tensor([[1, 5, 9, 2]])
    found, wanted = overwrite(live, recipe), load_merged(recipe, quantization_config=how)
    assert found is not live
    assert torch.equal(found(ids).logits, wanted(ids).logits)
    assert "loaded anew, because the live model is quantised" in caplog.text


def test_a_merge_of_another_shape_is_refused_and_nothing_is_written(
    family: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    live = AutoModelForCausalLM.from_pretrained(family("Llama untied")["base"])
    before = {name: weight.clone() for name, weight in live.state_dict().items()}
    sizes = {**SMALL, "vocab_size": 72}
    model = seeded(transformers.LlamaConfig(**sizes), AutoModelForCausalLM, dtype=torch.bfloat16)
    larger = write_family(model, tmp_path, spread=0.05)
    with pytest.raises(MismatchError, match=r"is \[64, 32\] in the live model and \[72, 32\] in"):
        overwrite(live, spelt("linear", larger))
    with pytest.raises(MismatchError, match="is a llama model and the merge a qwen2 model"):
        overwrite(live, spelt("linear", family("Qwen2")))
    tied = spelt("linear", family("Llama tied"))
    live.config.tie_word_embeddings = True
    with pytest.raises(MergeError, match="not Linear"):
        overwrite(live.lm_head, tied)
    assert all(torch.equal(weight, before[name]) for name, weight in live.state_dict().items())


def test_damage_in_a_source_is_named(
    family: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    models = dict(family("Llama tied"))
    live = load_merged(spelt("linear", models))
    models["b"] = str(shutil.copytree(models["b"], tmp_path / "damaged"))
    rewrite(models["b"], lambda w: {n: v * torch.nan if "k_proj" in n else v for n, v in w.items()})
    with pytest.raises(CheckpointError, match=r"k_proj.weight holds NaN or infinity"):
        overwrite(live, spelt("ties", models))
    models["b"] = family("Llama tied")["b"]
    overwrite(live, spelt("ties", models))
    is_equal(live, load_merged(spelt("ties", models)))
