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
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from family import create_family
from safetensors.torch import load_file
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from merge_plugins import Recipe, load_merged

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weights": [0.6, 0.4]},
    "slerp": {"t": 0.4},
    "dare_ties": {"weights": 0.6, "density": 0.5},
    "ties": {"weights": 0.6, "density": 0.5},
}


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING)
    disable_progress_bar()  # of the loader: hundreds of lines
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory(prefix="merge-plugins-device-", dir=args.workdir) as folder:
        models = create_family(Path(folder), "3", device, num_hidden_layers=args.layers)
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
