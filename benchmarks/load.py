"""From recipe to live model: time and memory, next to mergekit and next to the floors.

    python benchmarks/load.py --mergekit /path/to/venv/bin/mergekit-yaml

Each step runs in a fresh process, in turn, on the same warm files; figures are medians over
--repeat rounds. README.md beside this file says what each ratio means.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from report import MEMORY_EXPERTS, METHODS, Figures, context, table
from tqdm import tqdm

RANDOM_METHODS = {"dare_ties"}
SECONDS = {"linear": 30, "task_arithmetic": 35, "slerp": 30, "dare_ties": 55, "ties": 105}
"""What one round of a method takes at 24 layers on two cores; only for the estimate."""
MERGEKIT_VERSION = "from importlib.metadata import version; print(version('mergekit'))"


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        workdir = (args.workdir or Path(temporary)).resolve()
        n_models = 1 + max(args.experts, *MEMORY_EXPERTS)
        announce(args, workdir, n_models)
        create(workdir, args.layers, n_models)
        times = time_all(workdir, args)
        agreements = {
            method: step(
                "agreement", recipe(workdir, method, args.experts), workdir / "merged" / method
            )
            for method in tqdm(args.methods, "agreement", unit="method")
            if method not in RANDOM_METHODS
        }
        memory = memory_of_all(workdir, args.methods)
    print(table(args.methods, times, agreements, memory))
    if args.verbose:
        print("", context(times), sep="\n")
    if args.raw:
        raw = {"times": times, "agreements": agreements, "memory": memory}
        args.raw.write_text(json.dumps(raw, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", required=True, help="mergekit-yaml 0.1.5 in its own venv")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="METHOD")
    parser.add_argument("--experts", type=int, default=2, help="experts in the timed merges")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--layers", type=int, default=24, help="fewer make a smaller model")
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    parser.add_argument("--raw", type=Path, help="write every figure to this JSON file")
    parser.add_argument("--verbose", action="store_true", help="print absolute times too")
    args = parser.parse_args()
    python = Path(args.mergekit).with_name("python")
    found = run([python, "-c", MERGEKIT_VERSION])["output"].strip()
    if found != "0.1.5":
        parser.error(f"the goals are stated against mergekit 0.1.5; {python} has {found}")
    return args


def announce(args: argparse.Namespace, workdir: Path, n_models: int) -> None:
    model_gb = 2e-9 * (98.3e6 + 16.8e6 * args.layers)
    disk = model_gb * (n_models + len(args.methods))
    minutes = 4 + model_gb * args.repeat * sum(SECONDS[m] for m in args.methods) / 60
    print(f"{workdir}: {disk:.0f} GB; about {minutes:.0f} minutes on two cores", file=sys.stderr)
    workdir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workdir).free / 1e9
    if free < disk and not (workdir / "created.txt").exists():
        raise SystemExit(
            f"{workdir} has {free:.0f} GB free, {disk:.0f} GB are needed: set --workdir"
        )


def create(workdir: Path, n_layers: int, n_models: int) -> None:
    """Write the models, once per working folder."""
    marker, content = workdir / "created.txt", f"{n_models} models of {n_layers} layers"
    if not marker.exists():
        step("create", workdir, n_layers, n_models - 1)
        marker.write_text(content)
    elif (found := marker.read_text()) != content:
        raise SystemExit(f"{workdir} has {found}, not {content}: choose another --workdir")


def recipe(workdir: Path, method: str, n_experts: int) -> Path:
    """Write the recipe that both sides read."""
    base, *experts = (
        str(workdir / name) for name in ["base", *map("expert_{}".format, range(n_experts))]
    )
    plain: dict[str, Any] = {"merge_method": method, "base_model": base, "dtype": "bfloat16"}
    if method == "slerp":
        plain |= {"models": [{"model": base}, {"model": experts[0]}], "parameters": {"t": 0.4}}
    else:
        density = {"density": 0.5} if "ties" in method else {}
        plain["models"] = [
            {"model": expert, "parameters": {"weight": round(0.6 / (i + 1), 3), **density}}
            for i, expert in enumerate(experts)
        ]
    if method == "linear":  # mergekit would average the base in
        del plain["base_model"]
    path = workdir / f"{method}-{n_experts}.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def read_by(path: Path) -> list[str]:
    """List the models that a recipe reads, each once."""
    plain = yaml.safe_load(path.read_text())
    models = [plain.get("base_model"), *(each["model"] for each in plain["models"])]
    return [*dict.fromkeys(model for model in models if model)]


def time_all(workdir: Path, args: argparse.Namespace) -> Figures:
    """Run every step once per round; return its figures by step and method."""
    sources = [workdir / "base", *(workdir / f"expert_{i}" for i in range(args.experts))]
    step("read", *sources)  # warm
    times: dict[str, list[Figures]] = defaultdict(list)
    for _ in tqdm(range(args.repeat), "rounds", unit="round"):
        for floor, folders in (
            ("imports", []),
            ("read", sources),
            ("mapped", sources[:1]),
            ("loaded", sources[:1]),
        ):
            times[floor].append(step(floor, *folders))
        for method in tqdm(args.methods, "methods", unit="method", leave=False):
            path, output = recipe(workdir, method, args.experts), workdir / "merged" / method
            shutil.rmtree(output, ignore_errors=True)
            times[f"ours {method}"].append(step("merged", path))
            times[f"limit {method}"].append(step("limit", *read_by(path)))
            times[f"mergekit {method}"].append(mergekit(args.mergekit, path, output))
    return times


def memory_of_all(workdir: Path, methods: list[str]) -> Figures:
    """Return peaks over (merged model + imports), by method and number of experts."""
    floor = step("imports", watch_memory=True)
    ratios: dict[str, dict[str, float]] = defaultdict(dict)
    for method in tqdm(methods, "memory", unit="method"):
        for n in MEMORY_EXPERTS[: 1 if method == "slerp" else None]:
            ours = step("merged", recipe(workdir, method, n), watch_memory=True)
            for kind in ("private", "rss"):
                ratios[method][f"{kind} {n}"] = ours[kind] / (ours["bytes"] + floor[kind])
    return ratios


def step(name: str, *arguments: object, watch_memory: bool = False) -> Figures:
    """Run one step of steps.py; return what it reported and what it took."""
    steps = Path(__file__).with_name("steps.py")
    figures = run([sys.executable, steps, name, *arguments], watch_memory=watch_memory)
    return {**figures, **json.loads(figures["output"])}


def mergekit(program: str, path: Path, output: Path) -> Figures:
    """Merge with mergekit in its own environment; return what its call and its process took."""
    script = Path(__file__).with_name("mergekit_merge.py")
    figures = run([Path(program).with_name("python"), script, path, output])
    return {**figures, **json.loads(figures["output"].splitlines()[-1])}


def run(command: list[object], *, watch_memory: bool = False) -> Figures:
    """Run a process to its end; return wall and CPU seconds, output, and peak memory in bytes."""
    words = [str(word) for word in command]
    os.sync()  # what the step before wrote is not to be flushed on this one's time
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(words, stdout=output, stderr=errors, env=offline)
        peaks = peak_memory(process.pid) if watch_memory else {}
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0), errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{shlex.join(words)} failed:\n{errors.read()[-4000:]}")
        cpu = usage.ru_utime + usage.ru_stime
        return {"wall": wall, "cpu": cpu, "output": output.read(), **peaks}


def peak_memory(pid: int) -> dict[str, int]:
    """Watch a process until it ends: peak anonymous (private) memory and peak resident memory.

    /proc/PID/status counts what smaps_rollup calls Anonymous, without walking the page tables
    while the process waits.
    """
    private = rss = 0
    while True:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kib = {
            k: int(v.split()[0])
            for k, _, v in (x.partition(":") for x in lines)
            if v.endswith("kB")
        }
        if "RssAnon" not in kib:  # a zombie: we have not waited for it yet
            return {"private": private * 1024, "rss": rss * 1024}
        private = max(private, kib["RssAnon"] + kib["RssShmem"])
        rss = max(rss, kib["VmHWM"])
        time.sleep(0.002)


if __name__ == "__main__":
    main()
