"""What the next merge costs in one process: overwritten in place, next to a fresh load.

    python benchmarks/overwrite.py

Writes a family of random weights, loads a merge of it and goes through others: with another
`density`, and with another `lambda` alone; then the same with sources that stay in memory, on
--resident. CPU seconds, since machines are busy, or seconds on a GPU; medians over --repeat rounds.
README.md beside this file says what the figures are.
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from load import create
from tqdm import tqdm
from transformers.utils import logging

from merge_plugins import Recipe, load_merged, open_merge, overwrite, shared_sources

METHODS = {"linear": "weight", "slerp": "t", "ties": "lambda", "dare_ties": "lambda"}
"""Methods, and the parameter of each that may change without measuring again."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24, help="of each model; 24 make 0.5 B")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--resident", default="cpu", help="device of the model and the sources")
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    args = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        workdir = (args.workdir or Path(temporary)).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        create(workdir, args.layers, 3)
        print("| method | sources | fresh load, s | overwrite ÷ it | one parameter alone ÷ it |")
        print("| --- | --- | --- | --- | --- |")
        for method in args.methods:
            for stay in (False, True):
                print(row(method, workdir, args.repeat, args.resident, stay=stay), flush=True)


def row(method: str, workdir: Path, repeat: int, device: str, *, stay: bool) -> str:
    """Time one method; the first load is not counted. ``stay``: sources stay in memory."""
    seconds = functools.partial(timed, device)
    values = iter(0.5 + i / 1000 for i in range(9 * repeat))
    times: dict[str, list[float]] = {"load": [], "overwrite": [], "alone": []}
    with shared_sources(resident=device if stay else None):
        live = load_merged(recipe(method, workdir, next(values)), device_map=device)
        for _ in tqdm(range(repeat), method, unit="round", leave=False):
            density = next(values)
            fresh = recipe(method, workdir, next(values), next(values))
            load = functools.partial(load_merged, fresh, device_map=device)
            times["load"].append(seconds(load))
            for name in ("overwrite", "alone"):
                given = recipe(method, workdir, next(values), density)
                times[name].append(seconds(functools.partial(overwrite, live, given)))
    load, other, alone = (statistics.median(each) for each in times.values())
    one, ten = (mapped(recipe(method, workdir, 0.5), workdir, n) for n in (1, 10))
    mapped_by = f"mapped: {one / 1e9:.2f} GB by 1 merge, {ten / 1e9:.2f} by 10"
    shown = f"stay on {device}" if stay else mapped_by
    return f"| {method} | {shown} | {load:.1f} | {other / load:.2f} | {alone / load:.2f} |"


def recipe(method: str, workdir: Path, value: float, density: float = 0.5) -> Recipe:
    parameters: dict[str, Any] = {"weight": 0.5, "density": density, METHODS[method]: value}
    known = {"linear": {"weight"}, "slerp": {"t"}}.get(method, {"weight", "density", "lambda"})
    names = ["expert_0", "expert_1"][: 1 if method == "slerp" else 2]
    return Recipe.from_mapping(
        {
            "merge_method": method,
            "base_model": str(workdir / "base"),
            "models": [str(workdir / name) for name in names],
            "parameters": {key: parameters[key] for key in known},
        }
    )


def timed(device: str, function: Callable[[], Any]) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    function()
    if device != "cpu":
        torch.accelerator.synchronize()
    return clock() - start


def mapped(given: Recipe, workdir: Path, n_merges: int) -> int:
    """Count the bytes of sources that are mapped while merges are open."""
    with ExitStack() as stack:
        for _ in range(n_merges):
            stack.callback(lambda merge: None, open_merge(given))
        lines = Path("/proc/self/maps").read_text().splitlines()
        spans = [re.match(r"(\w+)-(\w+)", line) for line in lines if str(workdir) in line]
        return sum(int(span[2], 16) - int(span[1], 16) for span in spans if span)


if __name__ == "__main__":
    main()
