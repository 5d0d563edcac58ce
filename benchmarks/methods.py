"""What each merge method costs: CPU time and peak memory, next to the code of others.

    python benchmarks/methods.py --mergekit /path/to/venv/bin/mergekit-yaml
    python benchmarks/methods.py --groups published --mergellm CHECKOUT --della CHECKOUT
    python benchmarks/methods.py --memory-only

Same files, one process each, in turn. The others' code is optional and only run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from load import create, mergekit, run, step
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
WEIGHED = {"weight": 0.6}
PUBLISHED: dict[str, dict[str, Any]] = {**PARAMETERS, "della": {"weight": 1.0, **MAGPRUNE}}
MERGEKIT: dict[str, dict[str, Any]] = {
    "linear": WEIGHED,
    "slerp": {"t": 0.4},
    "nuslerp": WEIGHED,
    "multislerp": WEIGHED,
    "karcher": {},
    "passthrough": {"scale": 0.9},
    "task_arithmetic": WEIGHED,
    "ties": {**WEIGHED, "density": 0.5},
    "dare_ties": {**WEIGHED, "density": 0.5},
    "dare_linear": {**WEIGHED, "density": 0.5},
    "breadcrumbs": {**WEIGHED, "density": 0.9, "gamma": 0.01},
    "breadcrumbs_ties": {**WEIGHED, "density": 0.9, "gamma": 0.01},
    "della": {**WEIGHED, "density": 0.5},
    "della_linear": {**WEIGHED, "density": 0.5},
    "model_stock": {},
    "sce": {"select_topk": 0.5},
    "nearswap": {"t": 0.001},
    "arcee_fusion": {},
    "ram": {},
    "ramplus_tl": {},
}
FIELD: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("tsv", "iso_c", "iso_cts", "consensus", "pcb")},
    "wudi": {"steps": 10},  # of 300: time follows them, memory does not
    "emr": {"router": "fixed"},
}
"""Not adamerging, which trains on data: its memory is that of training."""
GROUPS = {"published": PUBLISHED, "mergekit": MERGEKIT, "field": FIELD}
BASELESS = ("linear", "nuslerp", "karcher", "passthrough")
"""Methods of mergekit that would merge the base too."""
HEAD = """\
| method | CPU s, 10^9 weights | theirs | theirs ÷ ours | whole process ÷ theirs | private | RSS |
| --- | --- | --- | --- | --- | --- | --- |"""
ONE_EXPERT = ("slerp", "passthrough", "nearswap", "arcee_fusion")


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        workdir = (args.workdir or Path(temporary)).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        create(workdir, args.layers, 3)
        folders = [workdir / name for name in ("base", "expert_0", "expert_1")]
        step("read", *folders)  # warm
        floor = step("imports", watch_memory=True)
        for group in args.groups:
            print(f"\n{group}\n\n{HEAD}", flush=True)
            chosen = [name for name in GROUPS[group] if name in (args.methods or GROUPS[group])]
            for method in tqdm(chosen, group, unit="method"):
                print(row(group, method, folders, floor, args), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these of the groups")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml 0.1.5 in its own venv")
    parser.add_argument("--mergellm", type=Path, help="a clone of yule-BUAA/MergeLLM")
    parser.add_argument("--della", type=Path, help="a clone of declare-lab/della")
    parser.add_argument("--memory-only", action="store_true", help="what a busy machine can tell")
    parser.add_argument("--layers", type=int, default=4, help="24 make 0.5 B parameters")
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    return parser.parse_args()


def row(
    group: str, method: str, folders: list[Path], floor: dict[str, Any], args: argparse.Namespace
) -> str:
    """Measure one method and, if it is at hand, the code of others."""
    path = recipe(group, method, folders)
    cells = [method, *([""] * 4 if args.memory_only else times(group, path, folders, args))]
    watched = step("merged", path, watch_memory=True)
    for kind, limit in (("private", PRIVATE_GOAL), ("rss", RSS_GOAL)):
        peak = watched[kind] / (watched["bytes"] + floor[kind])
        cells.append(f"{peak:.2f} ≤ {limit}{' ✗' * (peak > limit)}")
    return f"| {' | '.join(cells)} |"


def times(group: str, path: Path, folders: list[Path], args: argparse.Namespace) -> list[str]:
    """Return CPU seconds per 10^9 weights without imports: ours, theirs, and their quotient.

    And for mergekit ours over theirs from command to live model: wall time of whole processes.
    """
    method, ours = path.stem.partition("-")[2], step("merged", path)
    weights = ours["bytes"] / 2 / 1e9
    mine = ours["cpu_seconds"] / weights
    found = theirs(group, method, path, folders, args)
    if found is not None:
        other, source = found["cpu"] / weights, ""
    elif group == "published":
        other, source = SPEC[method] / 2**23 * 1e9, " (spec)"
    else:
        return [f"{mine:.1f}", "", "", ""]
    goal, ratio = SPEEDUP_GOALS.get(method) if group == "published" else None, other / mine
    against = "" if goal is None else f" ≥ {goal}{' ✗' * (ratio < goal)}"
    whole = f"{ours['wall'] / found['wall']:.2f}" if found and "wall" in found else ""
    return [f"{mine:.1f}", f"{other:.1f}{source}", f"{ratio:.1f}{against}", whole]


def theirs(
    group: str, method: str, path: Path, folders: list[Path], args: argparse.Namespace
) -> dict[str, float] | None:
    """Return what mergekit or a published merge took, if it is at hand.

    Of mergekit the CPU seconds of the call that merges and writes, and the wall time of its process
    and of loading its output.
    """
    if group == "mergekit" and args.mergekit:
        output = path.with_suffix("")
        try:
            merged = mergekit(args.mergekit, path, output)
            return {
                "cpu": merged["cpu_seconds"],
                "wall": merged["wall"] + step("mapped", output)["wall"],
            }
        finally:
            shutil.rmtree(output, ignore_errors=True)
    checkout = args.della if method == "della" else args.mergellm
    if group != "published" or checkout is None:
        return None
    script = Path(__file__).with_name("published.py")
    done = run([sys.executable, script, checkout, method, *folders])
    return {"cpu": json.loads(done["output"])["seconds"]}


def recipe(group: str, method: str, folders: list[Path]) -> Path:
    """Write the recipe of one method beside the models."""
    base, *experts = map(str, folders)
    given = dict(GROUPS[group][method])
    plain = {"merge_method": method, "base_model": base, "models": experts, "parameters": given}
    if group == "mergekit":
        experts = experts[: 1 if method in ONE_EXPERT else None]
        own = {
            key: given.pop(key) for key in ("weight", "density", "gamma", "scale") if key in given
        }
        plain |= {"models": [{"model": e, "parameters": own} for e in experts], "dtype": "bfloat16"}
        if method in BASELESS:
            del plain["base_model"]
    path = folders[0].parent / f"{group}-{method}.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


if __name__ == "__main__":
    main()
