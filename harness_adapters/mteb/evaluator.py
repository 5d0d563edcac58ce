"""Score one merge after another on MTEB's tasks, in one process.

    with Evaluator({"STS12": None, "SciFact": {"weight": 0.5}}, eval_splits=["test"]) as evaluator:
        print(evaluator.score(recipe)["STS12"].value)

Scores are those of ``python -m harness_adapters.mteb run`` on the same recipe and tasks. Data are
loaded once, and sources stay open. Nothing is filed in MTEB's cache of results.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from functools import cached_property
from importlib.metadata import version
from typing import Any
from weakref import finalize

import mteb
from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from harness_adapters.mteb.models import meta
from merge_plugins import shared_sources
from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.identity import label
from merge_plugins.recipe import Recipe
from merge_plugins.search.goals import Numbers, read_goal, read_scores
from merge_plugins.search.objective import Score

MAIN = "main_score"
"""Name by which MTEB has a task's own choice of a metric in every result."""
RELEASES = ("mteb", "sentence-transformers", "torch", "transformers")


class Evaluator(Numbers):
    """An `Objective`: MTEB's tasks, each scored by its main metric or by another of its metrics.

    ``tasks``: names in a list; or a mapping from names to ``metric``, ``weight`` and
    ``higher_is_better``. ``own``: classes of tasks of your own, which go before MTEB's.
    ``eval_splits``, ``languages``: the parts of each task, as MTEB's command line takes them.
    ``batch_size``: texts that are encoded at once. ``options``: of `load_embedder` and
    `load_reranker`, such as ``model_kwargs``.

    Raises `MergeError` for what is wrong with these, or data that are not there, before a model is
    loaded.
    """

    def __init__(
        self,
        tasks: Sequence[str] | Mapping[str, Mapping[str, Any] | None],
        *,
        own: Iterable[type[AbsTask]] = (),
        eval_splits: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
        batch_size: int = 32,
        device: str | None = None,
        **options: Any,
    ) -> None:
        wanted = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks)
        if not wanted:
            raise MergeError("no tasks; write tasks: [STS12], or {STS12: {metric: …}}")
        known = inspect.signature(SentenceTransformer).parameters
        for key in options:
            if key not in known:
                raise MergeError(f"MTEB's models take no {key!r}{did_you_mean(key, known)}")
        super().__init__({name: _goal(name, s) for name, s in wanted.items()}, "MTEB")
        self._metrics = {name: (s or {}).get("metric", MAIN) for name, s in wanted.items()}
        self._own = {task.metadata.name: task for task in own}
        self._parts = {"eval_splits": eval_splits, "languages": languages}
        self._batch_size, self._device, self._options = batch_size, device, options
        self._tasks = self._loaded()
        self._open = ExitStack()
        self._closed = finalize(self, self._open.close)  # at the latest when Python ends
        self._open.enter_context(shared_sources())

    @classmethod
    def from_settings(cls, tasks: Any, settings: Mapping[str, Any]) -> Evaluator:
        """Build an evaluator from one mapping, whose keys are its own arguments."""
        return cls(tasks, **settings)

    @cached_property
    def identity(self) -> str:
        """A hash of what scores depend on besides the recipe: 16 hex digits.

        Tasks and the revisions of their data, splits and languages, metrics, options of the models,
        releases.
        """
        content = {
            "tasks": [[t.metadata.name, t.metadata.dataset, t.hf_subsets] for t in self._tasks],
            "splits": [list(task.eval_splits) for task in self._tasks],
            "metrics": self._metrics,
            "options": self._options,
            "releases": {name: version(name) for name in RELEASES},
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def test_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are scored on their test split."""
        return tuple(t.metadata.name for t in self._tasks if "test" in t.eval_splits)

    def numbers(self, recipe: Recipe) -> Mapping[str, float]:
        """Merge, and have MTEB score all tasks."""
        return self._scored(recipe, map(_anew, self._tasks))

    def separately(self, recipe: Recipe) -> Mapping[str, Score]:
        """Score a recipe with all data loaded again."""
        return read_scores(self._scored(recipe, self._loaded()), self._goals, self._whose)

    def close(self) -> None:
        """Close the sources."""
        self._closed()

    def __enter__(self) -> Evaluator:
        """Close at the end of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _loaded(self) -> list[Any]:
        """Find the tasks, and load their data."""
        tasks = []
        for name in self._metrics:
            try:
                task = self._task(name)
                if not task.is_aggregate:  # those load their own tasks
                    task.load_data()
                    _check_splits(task)
            except (KeyError, ValueError, OSError) as exc:  # KeyError: with the name that was meant
                raise MergeError(f"{name}: MTEB cannot load this task: {exc}") from exc
            tasks.append(task)
        return tasks

    def _task(self, name: str) -> Any:
        if name not in self._own:
            return mteb.get_task(name, **self._parts)
        task = self._own[name]().filter_eval_splits(self._parts["eval_splits"])
        return task.filter_languages(self._parts["languages"])

    def _scored(self, recipe: Recipe, tasks: Iterable[Any]) -> Mapping[str, float]:
        found = mteb.evaluate(
            meta(recipe, label(recipe), **self._options).load_model(device=self._device),
            list(tasks),
            cache=None,
            raise_error=False,
            encode_kwargs={"batch_size": self._batch_size, "show_progress_bar": False},
            show_progress_bar=False,
        )
        for failed in found.exceptions or ():
            raise MergeError(f"{failed.task_name}: MTEB failed: {failed.exception}")
        return {each.task_name: self._score(each) for each in found.task_results}

    def _score(self, result: Any) -> float:
        """Average a task's metric over its splits and languages, as MTEB averages the main one."""
        metric = self._metrics[result.task_name]
        first = next(iter(result.scores.values()))[0]
        if metric not in first:
            known = [key for key, value in first.items() if isinstance(value, int | float)]
            raise MergeError(
                f"{result.task_name} has no metric {metric!r}"
                f"{did_you_mean(metric, known) or '; it has ' + ', '.join(known)}"
            )
        return float(result.get_score(getter=lambda scores: scores[metric]))


def _goal(name: str, settings: Any) -> Any:
    if isinstance(settings, Mapping):
        settings = {key: value for key, value in settings.items() if key != "metric"}
    return read_goal(name, settings, more=("metric",))


def _check_splits(task: Any) -> None:
    for data in (task.dataset.get(subset, task.dataset) for subset in task.hf_subsets):
        if missing := [split for split in task.eval_splits if split not in data]:
            raise ValueError(f"no split {missing[0]!r}; its data have {', '.join(map(str, data))}")


def _anew(task: Any) -> Any:
    """Copy a task that has its data, with the random numbers of a new one."""
    new, copied = type(task)(), copy(task)
    copied.rng_state, copied.np_rng = new.rng_state, new.np_rng
    return copied
