"""Merge on an accelerator: time and memory, next to moving the sources there and to our CPU merge.

    python benchmarks/device.py

Writes a family of 3 B parameters (19 GB for three models; ``--layers 4`` for a quick look), then
loads each merge onto the device and onto the CPU, in turn, from the same warm files. Figures are
medians over --repeat rounds. README.md beside this file says what each ratio means.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig
from transformers.utils.logging import disable_progress_bar

from merge_plugins import Recipe, load_merged

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weights": [0.6, 0.4]},
    "slerp": {"t": 0.4},
    "dare_ties": {"weights": 0.6, "density": 0.5},
    "ties": {"weights": 0.6, "density": 0.5},
}
SPREAD, CHANGE = 0.02, 0.0003
"""Standard deviation of the base's weights, and of what an expert changes."""
SHARD = 4 << 30
"""Bytes of one file, at most."""


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING)
    disable_progress_bar()  # of the loader: hundreds of lines
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory(prefix="merge-plugins-device-", dir=args.workdir) as folder:
        models = create(Path(folder), args.layers, device)
        n_bytes = sum(file.stat().st_size for file in models[0].glob("*.safetensors"))
        print(
            f"{torch.get_num_threads()} cores, {name_of(device)}; a model is {n_bytes / 1e9:.1f} GB"
        )
        rows = [row(method, models, device, args.repeat) for method in args.methods]
    print(table(rows))
    if args.raw:
        args.raw.write_text(json.dumps(rows, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=str(torch.accelerator.current_accelerator() or "cpu"))
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workdir", type=Path, help="where to write the models")
    parser.add_argument("--raw", type=Path, help="write every figure to this JSON file")
    return parser.parse_args()


def create(folder: Path, n_layers: int, device: torch.device) -> list[Path]:
    """Write a base and two experts, shaped like Llama 3.2 3B: random weights in bfloat16."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=n_layers,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    models = [folder / name for name in ("base", "first", "second")]
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(len(models))]
    shards: list[dict[str, Tensor]] = [{} for _ in models]
    maps: dict[str, str] = {}
    n_shards = size = 0

    def flush() -> None:
        nonlocal n_shards, size
        n_shards += 1
        name = f"model-{n_shards:05}.safetensors"
        for model, shard in zip(models, shards, strict=True):
            model.mkdir(exist_ok=True)
            save_file(shard, model / name, {"format": "pt"})
            maps.update(dict.fromkeys(shard, name))
            shard.clear()
        size = 0

    for name, shape in tqdm([*shapes(config)], "writing models", unit=" weights"):
        base = SPREAD * torch.randn(shape, generator=generators[0], device=device)
        for shard, generator in zip(shards, generators, strict=True):
            change = CHANGE * torch.randn(shape, generator=generator, device=device)
            shard[name] = (base if shard is shards[0] else base + change).bfloat16().cpu()
        size += 2 * math.prod(shape)
        if size >= SHARD:
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


def row(method: str, models: list[Path], device: torch.device, repeat: int) -> dict[str, Any]:
    """Measure one method: seconds of every round, peak of the device's memory, equal elements."""
    experts = models[1:2] if method == "slerp" else models[1:]
    base = {} if method == "linear" else {"base": str(models[0])}
    recipe = Recipe.from_model_args(
        {"method": method, "models": [*map(str, experts)], **METHODS[method], **base}
    )
    sources = [model for model in models if model in experts or (base and model == models[0])]
    ways: dict[str, Callable[[], Any]] = {
        "moved": lambda: move(sources, device),
        "device": lambda: load_merged(recipe, device_map=device),
        "cpu": lambda: load_merged(recipe),
    }
    load_merged(recipe, device_map=device)  # first calls compile, allocate and import
    times: dict[str, list[float]] = {way: [] for way in ways}
    for way in tqdm([*ways] * repeat, method, unit=" loads"):
        times[way].append(seconds(ways[way], device))
    return {"method": method, **times, **compared(recipe, device)}


def compared(recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Load a merge on the device: peak memory ÷ model, and elements that differ from the CPU's."""
    module = torch.get_device_module(device)
    free(device)
    before = module.memory_allocated(device)
    module.reset_peak_memory_stats(device)
    model = load_merged(recipe, device_map=device)
    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = (module.max_memory_allocated(device) - before) / n_bytes
    pairs = zip(model.parameters(), load_merged(recipe).parameters(), strict=True)
    different = sum(int((a != b.to(device)).sum()) for a, b in pairs)
    del model
    free(device)
    return {"peak": peak, "different": different}


def move(sources: list[Path], device: torch.device) -> None:
    """Load every file of the sources onto the device with safetensors itself, one at a time."""
    for source in sources:
        for file in sorted(source.glob("*.safetensors")):
            load_file(file, device=str(device))


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    free(device)
    start = time.perf_counter()
    result = function()
    torch.accelerator.synchronize(device)
    taken = time.perf_counter() - start
    del result
    return taken


def free(device: torch.device) -> None:
    gc.collect()
    torch.get_device_module(device).empty_cache()


def name_of(device: torch.device) -> str:
    return str(torch.get_device_module(device).get_device_name(device))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | device ÷ moving the sources there | device ÷ our CPU merge | peak ÷ model | "
        "elements that differ from the CPU's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        there, here, moved = (statistics.median(row[key]) for key in ("device", "cpu", "moved"))
        lines.append(
            f"| {row['method']} | {there / moved:.2f} | {there / here:.3f} | {row['peak']:.3f} | "
            f"{row['different']} |"
        )
        lines.append(f"<!-- {there:.2f} s, CPU {here:.2f} s, moving {moved:.2f} s -->")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
