"""What a model's class would not load as it is, is told before a weight is merged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from architectures import state
from families import SMALL, edit, rewrite, seeded, word_tokenizer, write_family
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_plugins import MergeError, Recipe, load_merged, mount, save
from merge_plugins.cli import main
from merge_plugins.engine import MergedTensor
from merge_plugins.errors import MergeWarning

Weights = dict[str, Tensor]
Family = dict[str, str]


def family(root: Path, model: Any) -> Family:
    words = ["<unk>", "<s>", "</s>", *map(str, range(61))]
    tokenizer = word_tokenizer(words, unknown="<unk>", eos_token="</s>")
    return write_family(model, root, spread=0.02, tokenizer=tokenizer)


def merge(models: Family, **top: Any) -> dict[str, Any]:
    experts = [{"model": models[name], "parameters": {"weight": 0.5}} for name in ("a", "b")]
    return {
        "merge_method": "task_arithmetic", "base_model": models["base"], "models": experts, **top
    }  # fmt: skip


def stack(models: Family, *ranges: list[int]) -> dict[str, Any]:
    slices = [
        {"sources": [{"model": models[name], "layer_range": layers}]}
        for name, layers in zip(("base", "a", "b"), ranges, strict=False)
    ]
    return {"merge_method": "passthrough", "slices": slices}


def refused(
    given: Mapping[str, Any], root: Path, capsys: pytest.CaptureFixture[str], *said: str
) -> None:
    """Check, save, mount and load refuse alike, and none of them merges a weight."""
    file = root / "merge.yaml"
    file.write_text(json.dumps(given))
    assert main(["check", str(file)]) == 1
    error = capsys.readouterr().err
    for part in said:
        assert part in error
    recipe = Recipe.load(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MergedTensor, "on", lambda *_: pytest.fail("a weight was merged"))
        for way in (save, mount):
            with pytest.raises(MergeError):
                way(recipe, root / "out")
        with pytest.raises(MergeError):
            load_merged(recipe)
    assert not (root / "out").exists()


LLAMA = {**SMALL, "num_hidden_layers": 3}


@pytest.fixture
def llamas(tmp_path: Path) -> Family:
    return family(tmp_path, seeded(t.LlamaConfig(**LLAMA), t.LlamaForCausalLM))


ALL = ("base", "a", "b")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"vocab_size": 65}, "[64, 32]"),
        ({"num_hidden_layers": 4}, "model.layers.3."),
        ({"num_hidden_layers": 2}, "model.layers.2."),
        ({"intermediate_size": "wide"}, "intermediate_size"),
        ({"hidden_size": 32, "model_type": None}, "has no model_type"),
    ],
    ids=str,
)
def test_a_config_that_disagrees_with_the_weights(
    keys: dict[str, Any], said: str, llamas: Family, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ALL:
        edit(llamas[name], **keys)
    refused(merge(llamas), tmp_path, capsys, said, "config.json")


def test_a_head_that_is_not_there(
    llamas: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ALL:
        rewrite(llamas[name], lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    refused(merge(llamas), tmp_path, capsys, "lm_head.weight [64, 32]")


def test_a_lone_model_of_which_a_shard_is_lost(
    llamas: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(llamas["a"])
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = dict(list(weights.items())[: len(weights) // 2])
    save_file(half, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    alone = {"merge_method": "passthrough", "models": [{"model": str(folder)}]}
    refused(alone, tmp_path, capsys, "A file of the model may be lost")


def test_a_base_without_a_tokenizer_is_told_by_check(
    llamas: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in Path(llamas["base"]).glob("tokenizer*"):
        file.unlink()
    file = tmp_path / "merge.yaml"
    file.write_text(json.dumps(merge(llamas)))
    assert main(["check", str(file)]) == 1
    error = capsys.readouterr().err
    assert f"{llamas['base']} has no tokenizer files" in error
    assert "tokenizer_source: " + llamas["a"] in error
    file.write_text(json.dumps(merge(llamas, tokenizer_source=llamas["a"])))
    assert main(["check", str(file)]) == 0


EXPERTS = {**SMALL, "num_hidden_layers": 4, "num_experts": 4, "moe_intermediate_size": 16}
SPARSE: dict[str, tuple[Any, Any]] = {
    "jamba": (
        t.JambaForCausalLM,
        t.JambaConfig(**{**EXPERTS, "num_experts_per_tok": 2}, attn_layer_period=2,
                      attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
                      mamba_d_state=4, mamba_d_conv=2, mamba_expand=1, mamba_dt_rank=4),
    ),
    "deepseek": (
        t.DeepseekV3ForCausalLM,
        t.DeepseekV3Config(**{**EXPERTS, "num_key_value_heads": 4}, eos_token_id=2,
                           n_routed_experts=4,
                           n_group=1, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1,
                           q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
                           v_head_dim=8),
    ),
    "qwen3-moe": (
        t.Qwen3MoeForCausalLM,
        t.Qwen3MoeConfig(**EXPERTS, decoder_sparse_step=2, head_dim=8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPARSE)
def test_a_stack_that_no_config_expresses(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_class, config = SPARSE[name]
    models = family(tmp_path, seeded(config, model_class))
    refused(stack(models, [0, 3], [0, 3]), tmp_path, capsys, "config.json")


def test_kinds_of_layers_follow_a_stack_though_no_key_holds_its_depth(tmp_path: Path) -> None:
    config = t.NemotronHConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, ssm_state_size=8, mamba_num_heads=8, mamba_head_dim=8,
        n_groups=1, hybrid_override_pattern="M-*M",
    )  # fmt: skip
    models = family(tmp_path, seeded(config, t.NemotronHForCausalLM))
    kinds = json.loads(Path(models["a"], "config.json").read_text())["layers_block_type"]
    model = load_merged(Recipe.from_mapping(stack(models, [0, 3], [1, 4])))
    assert list(model.config.layers_block_type) == kinds[:3] + kinds[1:4]


def test_a_stack_that_changes_the_width_of_a_table_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = t.Gemma4TextConfig(
        **{**SMALL, "num_hidden_layers": 6}, head_dim=8, vocab_size_per_layer_input=64,
        eos_token_id=2, hidden_size_per_layer_input=8,
    )  # fmt: skip
    models = family(tmp_path, seeded(config, t.Gemma4ForCausalLM))
    refused(stack(models, [0, 4], [2, 6]), tmp_path, capsys, "embed_tokens_per_layer")


COMPOSITE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3.5": lambda: (
        t.Qwen3_5ForConditionalGeneration,
        t.Qwen3_5Config(
            text_config={**SMALL, "head_dim": 8, "layer_types": ["full_attention"] * 2},
            vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4,
                           "out_hidden_size": 32, "patch_size": 14},
        ),
    ),
    "llama4": lambda: (
        t.Llama4ForConditionalGeneration,
        t.Llama4Config(
            text_config={**SMALL, "intermediate_size_mlp": 48, "num_local_experts": 2,
                         "head_dim": 8, "pad_token_id": 0},
            vision_config={"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1,
                           "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
                           "vision_output_dim": 32, "projector_input_dim": 32,
                           "projector_output_dim": 32},
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITE)
def test_a_whole_multimodal_model_loads_as_its_text(name: str, tmp_path: Path) -> None:
    model_class, config = COMPOSITE[name]()
    models = family(tmp_path, seeded(config, model_class))
    recipe = Recipe.from_mapping(merge(models))
    stock = t.AutoModelForCausalLM.from_pretrained(save(recipe, tmp_path / "saved"))
    live = load_merged(recipe)
    assert type(live) is type(stock)
    wanted = state(stock)
    assert all(torch.equal(weight, wanted[key]) for key, weight in state(live).items())
    folder = str(mount(recipe, tmp_path / "mounted"))
    mounted = t.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert all(torch.equal(weight, wanted[key]) for key, weight in state(mounted).items())


def test_an_unsaid_dtype_is_the_one_that_transformers_takes(llamas: Family, tmp_path: Path) -> None:
    for name in ALL:
        edit(llamas[name], dtype=None)
        rewrite(
            llamas[name],
            lambda w: {
                k: v.to(torch.float32 if "norm" in k else torch.bfloat16) for k, v in w.items()
            },
        )
    recipe = Recipe.from_mapping(merge(llamas))
    live = load_merged(recipe)
    saved = t.AutoModelForCausalLM.from_pretrained(save(recipe, tmp_path / "saved"))
    folder = str(mount(recipe, tmp_path / "mounted"))
    mounted = t.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    base = t.AutoModelForCausalLM.from_pretrained(llamas["base"])
    assert live.dtype == saved.dtype == mounted.dtype == base.dtype
    wanted = live.state_dict()
    for other in (saved.state_dict(), mounted.state_dict()):
        assert all(torch.equal(other[key], wanted[key]) for key in wanted)


def test_a_weight_file_that_the_config_names_is_the_one_read(
    llamas: Family, tmp_path: Path
) -> None:
    wanted = state(load_merged(Recipe.from_mapping(merge(llamas))))
    for name in ALL:
        file = Path(llamas[name], "model.safetensors")
        file.rename(file.with_name("real.safetensors"))
        zeros = {
            k: torch.zeros_like(v) for k, v in load_file(file.with_name("real.safetensors")).items()
        }
        save_file(zeros, file, {"format": "pt"})
        edit(llamas[name], transformers_weights="real.safetensors")
    recipe = Recipe.from_mapping(merge(llamas))
    live = state(load_merged(recipe))
    saved = state(t.AutoModelForCausalLM.from_pretrained(save(recipe, tmp_path / "saved")))
    assert all(torch.equal(live[key], wanted[key]) for key in wanted)
    assert all(torch.equal(saved[key], wanted[key]) for key in wanted)
    edit(llamas["a"], transformers_weights="../real.safetensors")
    with pytest.raises(MergeError, match=r"transformers_weights is .*real\.safetensors"):
        load_merged(recipe)


# What is only told.


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            t.LlamaConfig(**LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
            "rope",
        ),
        (t.LlamaConfig(**LLAMA, rms_norm_eps=1e-3), "rms_norm_eps"),
        (t.LlamaConfig(**LLAMA, hidden_act="gelu"), "hidden_act"),
        (t.MistralConfig(**LLAMA, sliding_window=8), "model_type 'llama' and 'mistral'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_that_compute_other_functions_are_told(
    other: Any, said: str, llamas: Family, tmp_path: Path
) -> None:
    seeded(other, t.AutoModelForCausalLM).save_pretrained(llamas["a"])
    with pytest.warns(MergeWarning, match=f"compute different functions: .*{said}"):
        load_merged(Recipe.from_mapping(merge(llamas)))


def test_old_spellings_of_one_function_are_no_difference(llamas: Family, tmp_path: Path) -> None:
    edit(llamas["a"], rope_parameters=None, rope_theta=10000.0, rope_scaling=None)
    load_merged(Recipe.from_mapping(merge(llamas)))  # a warning is an error here


def test_a_tokenizer_at_whose_end_of_turn_nothing_stops_is_told(llamas: Family) -> None:
    file = Path(llamas["a"], "tokenizer_config.json")
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "eos_token": "5"}))
    Path(llamas["base"], "generation_config.json").write_text('{"eos_token_id": [2]}')
    given = merge(llamas, tokenizer_source=llamas["a"])
    with pytest.warns(
        MergeWarning, match=r"eos_token is '5', token 8, but generation stops only at 2: .*config"
    ):
        load_merged(Recipe.from_mapping(given))
    Path(llamas["b"], "generation_config.json").write_text('{"eos_token_id": [2, 8]}')
    load_merged(Recipe.from_mapping({**given, "generation_config": llamas["b"]}))
