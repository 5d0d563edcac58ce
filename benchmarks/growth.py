"""How time and memory grow with the model: seconds for 10⁹ weights at 0.17, 0.5, 1.5 and 3 B.

    python benchmarks/growth.py --mergekit /path/to/venv/bin/mergekit-yaml

Each merge is loaded in a fresh process, in turn, without imports; figures are medians over
--repeat rounds. A line through them says what 7 B would take. mergekit merges the same files where
they are small enough to wait for it. README.md beside this file says what each figure means.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from family import SIZES, create_family
from load import mergekit, step
from tqdm import tqdm

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.6},
    "ties": {"weight": 0.6, "density": 0.5},
}
GOAL, TARGET = 2.5, 7.6
"""Minutes for TIES of a 7 B model on two cores, and its 10⁹ weights: Qwen2.5 7B has 7.6."""
WIDEST = 1.15
"""Slowest over fastest size, seconds per weight."""


def main() -> None:
    args = arguments()
    announce(args)
    found: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="merge-plugins-growth-", dir=args.workdir) as folder:
        floor = step("imports", watch_memory=True)["private"]
        for size in args.sizes:
            models = create_family(Path(folder) / size, size)
            step("read", *models)  # as warm as memory allows
            for method in tqdm(args.methods, f"{size} B", unit="method"):
                found[method, size] = measure(models, method, size, floor, args)
            shutil.rmtree(Path(folder) / size)
    for method in args.methods:
        print("", table(method, {s: found[method, s] for s in args.sizes}), sep="\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", help="mergekit-yaml 0.1.5 in its own venv")
    parser.add_argument("--mergekit-up-to", type=float, default=0.5, metavar="SIZE")
    parser.add_argument("--methods", nargs="+", default=[*RECIPES], choices=RECIPES)
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--workdir", type=Path, help="where to write the models")
    return parser.parse_args()


def announce(args: argparse.Namespace) -> None:
    """Say what it will take before it starts."""
    largest = max(map(float, args.sizes))
    disk = 2 * largest * 3 + 2 * min(largest, args.mergekit_up_to) * bool(args.mergekit)
    ours = sum(map(float, args.sizes)) * args.repeat * 30 * len(args.methods)
    sizes = [s for s in map(float, args.sizes) if s <= args.mergekit_up_to and args.mergekit]
    minutes = (ours + sum(sizes) * args.repeat * 130 + 90 * largest) / 60
    print(f"{disk:.0f} GB of disk; about {minutes:.0f} minutes on two cores", file=sys.stderr)


def measure(
    models: list[Path], method: str, size: str, floor: float, args: argparse.Namespace
) -> dict[str, float]:
    """Merge models by one method: medians of seconds, CPU seconds; weights; bytes beside them."""
    path = recipe(models, method)
    runs = [step("merged", path) for _ in range(args.repeat)]
    watched = step("merged", path, watch_memory=True)
    figures = {
        "weights": watched["bytes"] / 2e9,
        "seconds": median(run["seconds"] for run in runs),
        "cpu": median(run["cpu_seconds"] for run in runs),
        "beside": watched["private"] - watched["bytes"] - floor,
    }
    if args.mergekit and float(size) <= args.mergekit_up_to:
        output = models[0].parent / "merged"
        theirs = [mergekit(args.mergekit, path, output)["seconds"] for _ in range(args.repeat)]
        figures["mergekit"] = median(theirs)
    return figures


def recipe(models: list[Path], method: str) -> Path:
    """Write the recipe that both sides read."""
    base, *experts = map(str, models)
    plain: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    plain["models"] = [{"model": expert, "parameters": RECIPES[method]} for expert in experts]
    if method != "linear":  # mergekit would average the base in
        plain["base_model"] = base
    path = models[0].parent / f"{method}.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def table(method: str, sizes: dict[str, dict[str, float]]) -> str:
    """Return the figures of a method, how flat they are, and the line through them at 7 B."""
    lines = [
        f"| {method} | s | s for 10⁹ weights | CPU s for 10⁹ | private beside the model, MB | "
        "÷ mergekit's merge |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size, row in sizes.items():
        each, cpu = row["seconds"] / row["weights"], row["cpu"] / row["weights"]
        theirs = f"{row['seconds'] / row['mergekit']:.2f}" if "mergekit" in row else ""
        lines.append(
            f"| {size} B | {row['seconds']:.1f} | {each:.1f} | {cpu:.1f} | "
            f"{row['beside'] / 1e6:.0f} | {theirs} |"
        )
    paces = [row["seconds"] / row["weights"] for row in sizes.values()]
    lines += ["", f"slowest ÷ fastest: {max(paces) / min(paces):.2f} (goal {WIDEST})"]
    for whose, figure in (("ours", "seconds"), ("mergekit's", "mergekit")):
        known = [row for row in sizes.values() if figure in row]
        if len(known) > 1:
            slope, start = np.polyfit([r["weights"] for r in known], [r[figure] for r in known], 1)
            minutes = (start + slope * TARGET) / 60
            goal = f" (goal {GOAL})" if (method, whose) == ("ties", "ours") else ""
            lines.append(f"{TARGET} · 10⁹ weights by that line, {whose}: {minutes:.1f} min{goal}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
