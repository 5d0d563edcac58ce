"""A search that takes no time: merges of one small weight, scored by how near they come to another.

Every document is an element of the weight, so that racing and subsets have something to do.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from merge_plugins.engine import merged_tensors
from merge_plugins.errors import MergeError as MergeError
from merge_plugins.identity import digest
from merge_plugins.recipe import Recipe
from merge_plugins.search.loop import run
from merge_plugins.search.objective import Goal, Score
from merge_plugins.search.ranking import of_documents
from merge_plugins.search.settings import SearchFile
from merge_plugins.search.study import Study

N = 64
SHARES = {"a": 0.7, "b": 0.2}
"""Of each expert in what is to be found."""


def write_models(root: Path) -> Path:
    """Write the folders base, a and b, and target.safetensors."""
    torch.manual_seed(0)
    weights = {name: torch.randn(N) for name in ("base", "a", "b")}
    for name, weight in weights.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
        save_file({"x": weight}, root / name / "model.safetensors", {"format": "pt"})
    moved = (share * (weights[name] - weights["base"]) for name, share in SHARES.items())
    save_file({"x": weights["base"] + sum(moved)}, root / "target.safetensors")
    return root


@dataclass
class Nearness:
    """1 minus the distance from the target, element by element."""

    root: Path
    log: Path | None = None
    """A line for every recipe that is scored: its digest, and the documents."""
    seconds: float = 0.0
    """How long a score takes."""
    goals: Mapping[str, Goal] = field(default_factory=lambda: {"nearness": Goal()})
    identity: str = "nearness 1"

    @property
    def documents(self) -> Mapping[str, Sequence[str]]:
        return {name: [f"d{i:02}" for i in range(N)] for name in self.goals}

    def score(
        self, recipe: Recipe, documents: Mapping[str, Sequence[str]] | None = None
    ) -> Mapping[str, Score]:
        from safetensors.torch import load_file

        found = merged_tensors(recipe)["x"][...]
        off = (found - load_file(self.root / "target.safetensors")["x"]).abs()
        asked = self.documents if documents is None else documents
        time.sleep(self.seconds * sum(map(len, asked.values())) / N)
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{digest(recipe)} {sum(map(len, asked.values()))} {os.getpid()}\n")
        sign = {name: 1 if goal.higher_is_better else -1 for name, goal in self.goals.items()}
        return {
            name: of_documents({d: sign[name] * (1 - float(off[int(d[1:])])) for d in ids})
            for name, ids in asked.items()
        }

    def close(self) -> None:
        pass


def content(root: Path, **search: Any) -> dict[str, Any]:
    """A search.yaml's mapping: the weights of two experts vary."""
    varied = {"weight": {"low": 0, "high": 1}}
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / name), "parameters": varied} for name in SHARES],
        "search": {"budget": {"trials": 20}, "sampler": "random", **search},
    }


def study(
    root: Path,
    folder: Path,
    objective: Nearness | None = None,
    storage: str | None = None,
    **search: Any,
) -> Study:
    """Open a search in a folder."""
    file = SearchFile.parse(content(root, **search), root)
    return Study.open(file, folder, objective or Nearness(root), storage=storage)


def work(root: Path, folder: Path, seconds: float, n: int, storage: str | None = None) -> None:
    """Search as one of several processes do."""
    objective = Nearness(root, root / "log", seconds)
    for _ in run(study(root, folder, objective, storage, budget={"trials": n})):
        pass
