"""Which dimension of a weight runs over its layer's inputs, for every architecture we merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from merge_plugins.engine import open_merge
from merge_plugins.errors import MismatchError
from merge_plugins.hf.input_dims import input_dims

DECODER = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {key: DECODER[key] for key in list(DECODER)[:5]} | {"num_labels": 3}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 24}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "wpe",
    "word_embeddings",
    "position_embeddings",
    "token_type_e",
)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "llama, tied": ("LlamaConfig", "LlamaForCausalLM", {**DECODER, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", DECODER),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", DECODER),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**DECODER, **EXPERTS}),
    "qwen3 moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**DECODER, **EXPERTS}),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", ENCODER),
    "bert": ("BertConfig", "BertForSequenceClassification", ENCODER),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a tiny model of a family, once."""
    root = tmp_path_factory.mktemp("layouts")

    def save(family: str) -> Path:
        folder = root / family
        if not folder.is_dir():
            config, model, options = FAMILIES[family]
            torch.manual_seed(0)
            getattr(transformers, model)(getattr(transformers, config)(**options)).save_pretrained(
                folder
            )
        return folder

    return save


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(w.shape) for name, w in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_read_by_row_and_linear_layers_by_column(
    family: str, saved: Callable[[str], Path]
) -> None:
    stored = shapes(saved(family))
    dims = input_dims(saved(family), stored)
    for name, shape in stored.items():
        if len(shape) < 2:
            assert dims[name] is None, name
        elif any(part in name for part in EMBEDDINGS):
            assert dims[name] == 0, name
        elif family == "gpt2":
            assert dims[name] == -2, name  # Conv1D: (in, out)
        else:
            assert dims[name] == -1, name
    assert {0, -1} <= set(dims.values()) or family == "gpt2"


def test_a_head_of_its_own_is_a_linear_layer_and_a_tied_one_the_embedding(
    saved: Callable[[str], Path],
) -> None:
    head = {"lm_head.weight": (40, 16)}
    assert input_dims(saved("llama"), head) == {"lm_head.weight": -1}
    assert input_dims(saved("llama, tied"), head) == {"lm_head.weight": 0}


def test_prefixes_that_loaders_add_drop_or_move_do_not_matter(
    saved: Callable[[str], Path],
) -> None:
    llama = ["embed_tokens.weight", "layers.1.mlp.up_proj.weight", "norm.weight"]
    for prefix in ("", "model.", "language_model.model.", "model.language_model."):
        named = {prefix + name: (40, 16)[: 1 if "norm" in name else 2] for name in llama}
        assert list(input_dims(saved("llama"), named).values()) == [0, -1, None]
    gpt2 = {"h.0.attn.c_attn.weight": (16, 48), "wte.weight": (40, 16)}
    assert list(input_dims(saved("gpt2"), gpt2).values()) == [-2, 0]


def test_experts_in_one_weight_are_matrices_of_their_own_orientation(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(**{**DECODER, **EXPERTS})
    config.save_pretrained(tmp_path)
    names = {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 16, 48),
        "model.layers.0.mlp.experts.gate_up_proj_bias": (4, 48),
        "model.layers.0.mlp.experts.down_proj": (4, 24, 16),
        "model.layers.0.self_attn.q_proj.weight": (16, 16),
    }
    assert list(input_dims(tmp_path, names).values()) == [-2, None, -2, -1]
    transformers.MixtralConfig(**{**DECODER, **EXPERTS}).save_pretrained(tmp_path)
    fused = {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 48, 16),
        "model.layers.0.mlp.experts.down_proj": (4, 16, 24),
        "model.layers.0.block_sparse_moe.experts.3.w2.weight": (16, 24),
    }
    assert set(input_dims(tmp_path, fused).values()) == {-1}


def test_a_convolution_is_no_matrix(tmp_path: Path) -> None:
    config = transformers.Wav2Vec2Config(
        conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,), num_feat_extract_layers=1,
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    name = "feature_extractor.conv_layers.0.conv.weight"
    assert input_dims(tmp_path, {name: (8, 1, 3)}) == {name: None}


def test_a_config_without_a_model_type_is_of_bare_matrices(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert input_dims(tmp_path, {"a": (2, 3)}) == {"a": -1}


def test_code_that_comes_with_the_model_is_not_run(
    tmp_path: Path, recipe: Callable[..., Any]
) -> None:
    folders = []
    for name in ("base", "expert"):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"w": torch.zeros(2, 2)}, folder / "model.safetensors")
        (folder / "modeling.py").write_text("raise SystemExit('ran')")
        described = {"model_type": "own", "auto_map": {"AutoConfig": "modeling.Config"}}
        (folder / "config.json").write_text(json.dumps(described))
        folders.append(str(folder))
    with pytest.raises(MismatchError, match=r"has no code of its own for 'own'"):
        open_merge(recipe("widen_merging", folders[0], [folders[1]]))
    assert open_merge(recipe("task_arithmetic", folders[0], [folders[1]])).plan  # does not ask
