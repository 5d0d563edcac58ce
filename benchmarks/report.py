"""What load.py prints: ratios beside their goals."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

METHODS = ("linear", "task_arithmetic", "slerp", "dare_ties", "ties")
MEMORY_EXPERTS = (2, 6)
MERGEKIT_GOALS = dict(zip(METHODS, (0.3, 0.35, 0.2, 0.15, 0.07), strict=True))
ALONE_GOALS = {"linear": 2.0, "ties": 6.0}
PRIVATE_GOAL, RSS_GOAL = 1.15, 1.25

Figures = Mapping[str, Any]


def table(methods: list[str], times: Figures, agreements: Figures, memory: Figures) -> str:
    """Return the ratios as a markdown table; a goal stands beside its figure, ✗ where missed."""

    def cell(value: float, goal: float | None) -> str:
        return (
            f"{value:.2f}" if goal is None else f"{value:.2f} ≤ {goal:.2f}{' ✗' * (value > goal)}"
        )

    columns = ["method", "merge ÷ mergekit's", "limit ÷ mergekit's"]
    columns += ["÷ loaded source", "÷ mapped source"]
    columns += [f"{kind}, {n} experts" for kind in ("private", "RSS") for n in MEMORY_EXPERTS]
    columns += ["same bits as mergekit", "worst, ulps"]
    rows = [columns, ["---"] * len(columns)]
    for method in methods:
        alone = typical(times[f"ours {method}"], "seconds")
        theirs = typical(times[f"mergekit {method}"], "seconds")
        row = [method, cell(alone / theirs, MERGEKIT_GOALS[method])]
        row.append(cell(typical(times[f"limit {method}"], "seconds") / theirs, None))
        row.append(cell(alone / typical(times["loaded"], "seconds"), ALONE_GOALS.get(method)))
        row.append(cell(alone / typical(times["mapped"], "seconds"), None))
        for kind, goal in (("private", PRIVATE_GOAL), ("rss", RSS_GOAL)):
            found = (memory[method].get(f"{kind} {n}") for n in MEMORY_EXPERTS)
            row += ["" if ratio is None else cell(ratio, goal) for ratio in found]
        agreed = agreements.get(method)
        row += [f"{agreed['equal']:.4%}", f"{agreed['ulps']:.3g}"] if agreed else ["random", ""]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def context(times: Figures) -> str:
    """Return absolute medians: they say more about this machine than about us."""
    lines = ["| step | wall, s | CPU, s | without imports, s |", "| --- | --- | --- | --- |"]
    for name, runs in times.items():
        alone = f"{typical(runs, 'seconds'):.2f}" if "seconds" in runs[0] else ""
        lines.append(f"| {name} | {typical(runs):.2f} | {typical(runs, 'cpu'):.2f} | {alone} |")
    return "\n".join(lines)


def typical(runs: list[Figures], figure: str = "wall") -> float:
    return median(run[figure] for run in runs)
