"""Families of models to merge: Llama shapes of any size, random weights in bfloat16."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig

SPREAD, CHANGE = 0.02, 0.0003
"""Standard deviation of the base's weights, and of what an expert changes: 1.5 %, as fine-tunes."""
SHARD = 4 << 30
"""Bytes of one file, at most."""
SIZES: dict[str, dict[str, Any]] = {
    "0.17": {"vocab_size": 96_000, "hidden_size": 1024, "intermediate_size": 4608}
    | {"num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4},
    "0.5": {"vocab_size": 96_000, "hidden_size": 1024, "intermediate_size": 4608}
    | {"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 4},
    "1.5": {"vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960}
    | {"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
    "3": {"vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192}
    | {"num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8},
}
"""Shapes by 10⁹ weights: those of steps.py, of Qwen2.5 1.5B and of Llama 3.2 3B."""


def create_family(
    folder: Path, size: str, device: str | torch.device = "cpu", **changes: Any
) -> list[Path]:
    """Write a base and two experts; ``changes`` are those of the config."""
    config = LlamaConfig(
        **{"tie_word_embeddings": True, **SIZES[size], **changes},
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    models = [folder / name for name in ("base", "first", "second")]
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(len(models))]
    shards: list[dict[str, Tensor]] = [{} for _ in models]
    maps: dict[str, str] = {}
    n_shards = n_bytes = 0

    def flush() -> None:
        nonlocal n_shards, n_bytes
        n_shards += 1
        name = f"model-{n_shards:05}.safetensors"
        for model, shard in zip(models, shards, strict=True):
            model.mkdir(exist_ok=True, parents=True)
            save_file(shard, model / name, {"format": "pt"})
            maps.update(dict.fromkeys(shard, name))
            shard.clear()
        n_bytes = 0

    for name, shape in tqdm([*shapes(config)], "writing models", unit=" weights"):
        base = SPREAD * torch.randn(shape, generator=generators[0], device=device)
        shards[0][name] = base.bfloat16().cpu()
        for shard, generator in zip(shards[1:], generators[1:], strict=True):
            change = torch.randn(shape, generator=generator, device=device).mul_(CHANGE)
            shard[name] = change.add_(base).bfloat16().cpu()
        n_bytes += 2 * math.prod(shape)
        if n_bytes >= SHARD:
            flush()
    flush()
    for model in models:
        config.save_pretrained(model)
        index = {"metadata": {}, "weight_map": maps}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return models


def shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight, in the order of the model."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        for name, outputs in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            yield f"{at}.self_attn.{name}_proj.weight", (outputs, hidden)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)
