"""What the tests against mergekit share: models, settings drawn at random, tensors read back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

METHODS = (
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "passthrough", "task_arithmetic"),
    *("ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della"),
    *("della_linear", "model_stock", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl"),
)
FAMILIES = ("llama-float32", "qwen2-float32", "llama-bfloat16", "qwen2-bfloat16")
FILTERS = ("mlp", "self_attn", "norm", "embed_tokens", "layers.1.", "q_proj", "o_proj")
N_LAYERS = 3


def write_models(folder: Path) -> None:
    """Write a base and three experts; one weight in three is the same in an expert and the base."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if folder.name.startswith("llama"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=N_LAYERS, **sizes, **heads))
    else:  # biases, and one weight for embedding and head
        tied = {"tie_word_embeddings": True}
        model = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=N_LAYERS, **sizes, **heads, **tied))
    model.to(getattr(torch, folder.name.split("-")[1]))
    generator = torch.Generator().manual_seed(0)
    base = [0.05 * torch.randn(p.shape, generator=generator) for p in model.parameters()]
    for name in ("base", "a", "b", "c"):
        for parameter, weight in zip(model.parameters(), base, strict=True):
            moved = torch.rand(weight.shape, generator=generator) < (
                0.0 if name == "base" else 0.67
            )
            delta = moved * 0.01 * torch.randn(weight.shape, generator=generator)
            parameter.data.copy_(weight + delta)
        model.save_pretrained(folder / name)


def per_model(
    rng: random.Random, plain: dict[str, Any], name: str, low: float, high: float
) -> None:
    """Set a parameter for every model, or for all at the top with exceptions at some models."""
    at_top = name in plain["parameters"] or rng.random() < 0.3
    if at_top:
        plain["parameters"][name] = number(rng, low, high)
    for model in plain["models"]:
        if not at_top:
            model["parameters"][name] = number(rng, low, high)
        elif rng.random() < 0.5:
            only = {"filter": rng.choice(FILTERS), "value": number(rng, low, high, nested=True)}
            model["parameters"][name] = [only]


def number(rng: random.Random, low: float, high: float, *, nested: bool = False) -> Any:
    """Draw a setting that says something of every weight: scalar, gradient or filters."""
    points = [round(rng.uniform(low, high), 2) for _ in range(rng.randint(2, 4))]
    kind = rng.choice(["scalar", "gradient"] + ["filters"] * (not nested))
    if kind == "filters":
        some = rng.sample(FILTERS, rng.randint(1, 3))
        filters = [{"filter": word, "value": number(rng, low, high, nested=True)} for word in some]
        return [*filters, {"value": points[0]}]
    return points if kind == "gradient" else points[0]


def weights(folder: str | Path) -> Mapping[str, Tensor]:
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
