"""Indices and adapters whose JSON and tensors are of any kind: a merge, or a clear error."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from damaged_bytes import damaged
from safetensors.torch import save_file
from torch import Tensor

from merge_plugins.engine import merged_tensors
from merge_plugins.recipe import Recipe

Attempt = Callable[[Callable[[], Any]], Any]
Stream = Callable[[int], Iterator[Random]]
STRANGE: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 0.5, 1e308, 10**400, float("nan"), float("inf"), "", "x", "../x", "/x"),
    *("\0", "\ud800", "x" * 300, [], [1], {}, {"a": 1}, {"a": "b"}, {"(a+)+$": 8}, {"(": 1}, ["q"]),
)
SHAPES = ((4, 6), (2, 6), (4, 2), (0, 6), (4, 0), (6, 4), (), (4,), (1, 1), (2, 3, 2), (2, 2))


def merged(ref: Any) -> list[Tensor]:
    """Merge every tensor of one model."""
    recipe = Recipe.from_mapping({"merge_method": "passthrough", "models": [{"model": ref}]})
    return [tensor[...] for tensor in merged_tensors(recipe).values()]


def write_json(random: Random, file: Path, content: dict[str, Any]) -> None:
    """Write JSON with one of its values replaced, or its bytes damaged."""
    content = copy.deepcopy(content)
    if random.random() < 0.8:
        content[random.choice([*content])] = random.choice(STRANGE)
    text = json.dumps(content).encode()
    file.write_bytes(damaged(random, text) if random.random() < 0.2 else text)


def test_indices(stream: Stream, attempt: Attempt, outcomes: Counter[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    parts = {"a.safetensors": {"w": torch.ones(2)}, "b.safetensors": {"v": torch.ones(3)}}
    for name, tensors in parts.items():
        save_file(tensors, folder / name)
    for random in stream(200):
        names: dict[str, Any] = {"w": "a.safetensors", "v": "b.safetensors"}
        if random.random() < 0.7:
            names[random.choice(("w", "v", "u", ""))] = random.choice(
                (*STRANGE, "config.json", ".")
            )
        content = {"metadata": {}, "weight_map": names}
        write_json(random, folder / "model.safetensors.index.json", content)
        attempt(lambda: merged(str(folder)))
    assert outcomes["accepted"]
    assert outcomes["CheckpointError"]


def test_adapters(stream: Stream, attempt: Attempt, outcomes: Counter[str], tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    for folder in (model, adapter):
        folder.mkdir()
    (model / "config.json").write_text('{"vocab_size": 4}')
    weights = {"model.q.weight": torch.ones(4, 6), "model.e.weight": torch.ones(4, 6)}
    save_file(weights, model / "model.safetensors")
    config = {
        **{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": False, "use_dora": False},
        **{"alpha_pattern": {"q": 4, "model.*": 2}, "rank_pattern": {}, "fan_in_fan_out": False},
        **{"init_lora_weights": True, "target_modules": ["q"], "bias": "none"},
    }
    dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.int64, torch.float8_e5m2)
    kinds = {"lora_A": (2, 6), "lora_B": (4, 2)}
    kinds_of_others = ("lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B", "lora_C")
    for random in stream(200):
        tensors = {}
        for kind, shape in kinds.items():
            tensors[f"model.q.{kind}.weight"] = shape
        if random.random() < 0.5:
            tensors[random.choice([*tensors])] = random.choice(SHAPES)
        if random.random() < 0.4:
            module = random.choice(("model.q", "model.e", "x", ""))
            kind = random.choice((*kinds, *kinds_of_others))
            tensors[f"{module}.{kind}{random.choice(('', '.weight'))}"] = random.choice(SHAPES)
        if random.random() < 0.2:
            tensors[random.choice(("model.e.weight", "model.e.bias", "x"))] = random.choice(SHAPES)
        made = {}
        for name, shape in tensors.items():
            made[f"base_model.model.{name}"] = torch.ones(shape).to(random.choice(dtypes))
        save_file(made, adapter / "adapter_model.safetensors")
        write_json(random, adapter / "adapter_config.json", config)
        attempt(lambda: merged({"model": str(model), "lora": str(adapter)}))
    assert outcomes["accepted"]
    assert outcomes["CheckpointError"]
    assert outcomes["MismatchError"]
