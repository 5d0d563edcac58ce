"""What each merge method costs: CPU time and peak memory, next to the code its paper published.

    python benchmarks/methods.py --mergellm CHECKOUT --della CHECKOUT

Same files, one process each, in turn. The published code is optional and only run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from load import create, run, step
from published import MAGPRUNE, PARAMETERS
from report import PRIVATE_GOAL, RSS_GOAL
from tqdm import tqdm

SPEC = {
    "average_merging": 0.29,
    "task_arithmetic": 0.40,
    "slerp_merging": 0.66,
    "stock_merging": 0.78,
    "ties_merging": 4.3,
    "breadcrumbs_merging": 2.5,
    "mask_merging": 1.7,
    "widen_merging": 3.0,
    "della": 7.1,
}
"""CPU seconds of the published code per 2**23 float32 weights, two experts, on another machine."""
SPEEDUP_GOALS = {"ties_merging": 8, "widen_merging": 8, "della": 8}
CODES = {"della": "della"}
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"parameters": given} for name, given in PARAMETERS.items()},
    "della": {"parameters": {"weight": 1.0, **MAGPRUNE}},
}


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        workdir = (args.workdir or Path(temporary)).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        create(workdir, args.layers, 3)
        folders = [workdir / name for name in ("base", "expert_0", "expert_1")]
        step("read", *folders)  # warm
        floor = step("imports", watch_memory=True)
        print("| method | CPU s per 10^9 weights | published | published ÷ ours | private | RSS |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        for method in tqdm(args.methods, unit="method"):
            print(row(method, folders, floor, args), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergellm", type=Path, help="a clone of yule-BUAA/MergeLLM")
    parser.add_argument("--della", type=Path, help="a clone of declare-lab/della")
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), metavar="METHOD")
    parser.add_argument("--layers", type=int, default=4, help="24 make 0.5 B parameters")
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    return parser.parse_args()


def row(method: str, folders: list[Path], floor: dict[str, Any], args: argparse.Namespace) -> str:
    """Measure one method and, if its code is at hand, the published one."""
    path = recipe(method, folders)
    ours = step("merged", path)
    weights = ours["bytes"] / 2 / 1e9
    mine = (ours["cpu"] - floor["cpu"]) / weights
    checkout = getattr(args, CODES.get(method, "mergellm"))
    if checkout is None:
        theirs, source = SPEC[method] / 2**23 * 1e9, " (spec)"
    else:
        script = Path(__file__).with_name("published.py")
        found = json.loads(run([sys.executable, script, checkout, method, *folders])["output"])
        theirs, source = found["seconds"] / weights, ""
    goal = SPEEDUP_GOALS.get(method)
    ratio = theirs / mine
    against = "" if goal is None else f" ≥ {goal}{' ✗' * (ratio < goal)}"
    watched = step("merged", path, watch_memory=True)
    peaks = {k: watched[k] / (watched["bytes"] + floor[k]) for k in ("private", "rss")}
    cells = [method, f"{mine:.1f}", f"{theirs:.1f}{source}", f"{ratio:.1f}{against}"]
    for kind, limit in (("private", PRIVATE_GOAL), ("rss", RSS_GOAL)):
        cells.append(f"{peaks[kind]:.2f} ≤ {limit}{' ✗' * (peaks[kind] > limit)}")
    return f"| {' | '.join(cells)} |"


def recipe(method: str, folders: list[Path]) -> Path:
    """Write the recipe of one method beside the models."""
    base, *experts = map(str, folders)
    plain = {"merge_method": method, "base_model": base, "models": experts, **RECIPES[method]}
    path = folders[0].parent / f"{method}.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


if __name__ == "__main__":
    main()
