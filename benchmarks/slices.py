"""What a stack of layers costs when no layer is changed, next to loading it from its checkpoint.

    python benchmarks/slices.py

A frankenmerge of two models that takes every layer as it is, three quarters of each; then the same
merge, saved by us, loaded by transformers. README.md beside this file says what the steps are.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml
from load import create, step
from report import typical
from tqdm import tqdm

import merge_plugins

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24, help="of each model; 24 make 0.5 B")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        workdir = (args.workdir or Path(temporary)).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        create(workdir, args.layers, 3)
        path, saved = recipe(workdir, args.layers), workdir / "saved"
        if not saved.exists():
            merge_plugins.save(merge_plugins.Recipe.load(path), saved)
        step("read", workdir / "base", workdir / "expert_0", saved)  # warm
        runs: dict[str, list[dict[str, Any]]] = {}
        steps = {"imports": [], "merged": [path], "mapped": [saved], "loaded": [saved]}
        for _ in tqdm(range(args.repeat), unit="round"):
            for name, given in steps.items():
                peaks = step(name, *given, watch_memory=True)
                figures = {**step(name, *given), "private": peaks["private"], "rss": peaks["rss"]}
                runs.setdefault(name, []).append(figures)
    print(table(runs))


def recipe(workdir: Path, n_layers: int) -> Path:
    """Write the stack: the first three quarters of one model, the last three of another."""
    ranges = {"base": [0, n_layers * 3 // 4], "expert_0": [n_layers // 4, n_layers]}
    sources = [{"model": str(workdir / name), "layer_range": r} for name, r in ranges.items()]
    plain = {"merge_method": "passthrough", "slices": [{"sources": [one]} for one in sources]}
    path = workdir / "stack.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return seconds and memory of every step, without what imports take of both."""
    lines = ["| step | s | CPU s | private, GiB | RSS, GiB |", "| --- | --- | --- | --- | --- |"]
    floor = {f: typical(runs["imports"], f) for f in ("private", "rss")}
    for name in ("merged", "mapped", "loaded"):
        seconds, cpu = typical(runs[name], "seconds"), typical(runs[name], "cpu_seconds")
        private, rss = ((typical(runs[name], f) - floor[f]) / GIB for f in ("private", "rss"))
        lines.append(f"| {name} | {seconds:.2f} | {cpu:.2f} | {private:.2f} | {rss:.2f} |")
    size = runs["merged"][0]["bytes"] / GIB
    return "\n".join([*lines, "", f"The merge has {size:.2f} GiB of weights."])


if __name__ == "__main__":
    main()
