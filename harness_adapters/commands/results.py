"""Read lm-eval's and OpenCompass's result files into one list of scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge_plugins.errors import MergeError


class ReportError(MergeError, ValueError):
    """Missing, contradictory or ambiguous results."""


@dataclass(frozen=True)
class Task:
    """A task with its version and settings; results are comparable if these are equal."""

    name: str
    version: str = ""
    shots: int | None = None
    n_items: int | None = None
    """Number of scored items, per task of a group, if ``--limit`` left some out; else None."""

    def describe(self, metric: str) -> str:
        """Describe a metric of this task: its name, the shots, and the limit of items."""
        shots = [] if self.shots is None else [f"{self.shots}-shot"]
        items = [] if self.n_items is None else [f"first {self.n_items} items"]
        return ", ".join([metric.removesuffix(",none"), *shots, *items])


@dataclass(frozen=True)
class Score:
    """One number of one model."""

    model: str
    task: Task
    metric: str
    """As the harness names it: "exact_match,strict-match", with lm-eval's filter; "accuracy"."""
    value: float
    higher_is_better: bool
    file: Path
    stderr: float | None = None
    """Standard error of the value, where the harness gives one."""


@dataclass
class Results:
    """All scores of some result files, with the groups of tasks and the recipes of merges."""

    scores: list[Score] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)
    """lm-eval's groups by name: their tasks and subgroups."""
    recipes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Recipes of the models that are merges."""
    experts: list[str] = field(default_factory=list)
    """Models that stand for the experts of a merge, each on its own task."""


def read(paths: Iterable[Path]) -> Results:
    """Read every result file below the paths; raises `ReportError` for a path without any."""
    collected, seen = Results(), set[Path]()
    for path in paths:
        files = [path] if path.is_file() else sorted(_files(path))
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                (_read_opencompass if file.suffix == ".csv" else _read_lm_eval)(file, collected)
        if not files:
            raise ReportError(
                f"{path} has no results: expected lm-eval's results_*.json (--output_path DIR) or "
                "OpenCompass's WORK_DIR/<time>/summary/summary_*.csv below it."
            )
    _refuse_contradictions(collected.scores)
    return collected


def _files(folder: Path) -> Iterator[Path]:
    yield from folder.rglob("results_*.json")
    yield from folder.rglob("summary/summary_*.csv")


def _read_lm_eval(file: Path, collected: Results) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["results"], content["config"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as exc:
        raise ReportError(f"{file} is no result file of lm-eval: {exc!r}.") from exc
    add_lm_eval(content, collected, file)


def add_lm_eval(content: Mapping[str, Any], collected: Results, file: Path = Path()) -> None:
    """Add the scores that lm-eval returned, or wrote to a file."""
    results: Mapping[str, Mapping[str, Any]] = content["results"]
    config: Mapping[str, Any] = content["config"]
    merge = config.get("merge") or {}
    model = content.get("model_name") or _pretrained(config.get("model_args")) or config["model"]
    if merge.get("experts"):
        collected.experts.append(model)
    elif merge:
        collected.recipes[model] = merge["recipe"]
    collected.groups |= {
        group: tasks for group, tasks in content["group_subtasks"].items() if tasks
    }
    for name, measured in results.items():
        items = content.get("n-samples", {}).get(name, {"effective": config.get("limit")})
        limited = items.get("effective") != items.get("original")
        task = Task(
            name,
            version=str(content["versions"].get(name, "")),
            shots=content["n-shot"].get(name),
            n_items=int(items["effective"]) if limited else None,
        )
        higher = content.get("higher_is_better", {}).get(name, {})
        for key, value in measured.items():
            metric = key.partition(",")[0]
            if "," in key and not metric.endswith("_stderr") and isinstance(value, int | float):
                better = higher.get(metric) is not False
                found = (model, task, key, float(value), better, file, _stderr(key, measured))
                collected.scores.append(Score(*found))


def _stderr(key: str, measured: Mapping[str, Any]) -> float | None:
    """Find a metric's standard error; lm-eval writes "N/A" where it computed none."""
    metric, _, filter_ = key.partition(",")
    found = measured.get(f"{metric}_stderr,{filter_}")
    return float(found) if isinstance(found, int | float) else None


def _pretrained(model_args: object) -> str | None:
    """Find the model's name in its arguments, where lm-eval recorded no ``model_name``."""
    if isinstance(model_args, str):
        model_args = dict(part.partition("=")[::2] for part in model_args.split(","))
    return model_args.get("pretrained") if isinstance(model_args, Mapping) else None


def _read_opencompass(file: Path, collected: Results) -> None:
    rows = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
    head = ["dataset", "version", "metric", "mode"]
    if not rows or rows[0][:4] != head:
        raise ReportError(f"{file} is no summary of OpenCompass: expected {','.join(head)},MODEL…")
    for row in rows[1:]:
        name, version, metric, _, *values = row
        for model, value in zip(rows[0][4:], values, strict=True):
            if value != "-":  # OpenCompass's mark for a missing result
                task = Task(name, version="" if version == "-" else version)
                collected.scores.append(Score(model, task, metric, float(value), True, file))


def _refuse_contradictions(scores: Iterable[Score]) -> None:
    first: dict[tuple[str, Task, str], Score] = {}
    for score in scores:
        same = first.setdefault((score.model, score.task, score.metric), score)
        if same.value != score.value:
            measured = f"{score.task.name} ({score.task.describe(score.metric)})"
            raise ReportError(
                f"two results of {score.model} for {measured}: {same.value:g} in {same.file} and "
                f"{score.value:g} in {score.file}. Name the folder or file of the one that counts."
            )
