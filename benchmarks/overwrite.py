"""What the next merge costs in one process: overwritten in place, next to a fresh load.

    python benchmarks/overwrite.py

Writes a family of random weights, loads a merge of it and goes through others: with another
`density`, and with another `lambda` alone. CPU seconds, since machines are busy; medians over
--repeat rounds. README.md beside this file says what the figures are.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

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
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    args = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        workdir = (args.workdir or Path(temporary)).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        create(workdir, args.layers, 3)
        print("| method | fresh load, CPU s | overwrite ÷ it | one parameter alone ÷ it | mapped |")
        print("| --- | --- | --- | --- | --- |")
        for method in args.methods:
            print(row(method, workdir, args.repeat), flush=True)


def row(method: str, workdir: Path, repeat: int) -> str:
    """Time one method; the first load is not counted."""
    values = iter(0.5 + i / 1000 for i in range(9 * repeat))
    times: dict[str, list[float]] = {"load": [], "overwrite": [], "alone": []}
    with shared_sources():
        live = load_merged(recipe(method, workdir, next(values)))
        for _ in tqdm(range(repeat), method, unit="round", leave=False):
            density = next(values)
            fresh = recipe(method, workdir, next(values), next(values))
            times["load"].append(cpu_seconds(lambda fresh=fresh: load_merged(fresh)))
            for name in ("overwrite", "alone"):
                given = recipe(method, workdir, next(values), density)
                times[name].append(cpu_seconds(lambda given=given: overwrite(live, given)))
    load, other, alone = (statistics.median(each) for each in times.values())
    one, ten = (mapped(recipe(method, workdir, 0.5), workdir, n) for n in (1, 10))
    shown = f"{one / 1e9:.2f} GB by 1, {ten / 1e9:.2f} by 10"
    return f"| {method} | {load:.1f} | {other / load:.2f} | {alone / load:.2f} | {shown} |"


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


def cpu_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


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
