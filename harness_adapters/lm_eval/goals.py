"""Find a task's metric, and its value, standard error and documents in what lm-eval returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.metrics import mean

from harness_adapters.lm_eval.prepared import Tasks, size
from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.search.goals import read_goal
from merge_plugins.search.objective import Goal, Score


@dataclass(frozen=True)
class Scored:
    """One task or group that is scored by one metric."""

    name: str
    goal: Goal
    metric: str
    filter: str
    leaves: tuple[str, ...]
    """The tasks of a group; the task itself."""
    of_tasks: tuple[str, ...]
    """Ids of all documents that are scored, ``<task>/<number>``."""
    has_values: bool
    """Whether the metric is a mean of documents' values."""

    @property
    def documents(self) -> tuple[str, ...]:
        """Ids of all documents; none where the metric is no mean of theirs."""
        return self.of_tasks if self.has_values else ()

    @classmethod
    def read(cls, name: str, settings: Mapping[str, Any], tasks: Tasks) -> Scored:
        """Read what a user wrote of a task."""
        leaves = _leaves(name, tasks)
        metric, filter_ = _chosen(name, settings.get("metric"), tasks, leaves)
        rest = {key: value for key, value in settings.items() if key != "metric"}
        goal = read_goal(name, rest, _higher_is_better(metric, leaves, tasks), ("metric",))
        means = (tasks.tasks[leaf].aggregation().get(metric, mean) is mean for leaf in leaves)
        return cls(name, goal, metric, filter_, leaves, (*_documents(leaves, tasks),), all(means))

    def samples(self, wanted: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Split ids of documents into task and number; raise `MergeError` for an unknown one.

        Where the score has no documents, all of its tasks count.
        """
        known = {*self.documents} or {*self.of_tasks}
        for document in wanted if self.documents else self.of_tasks:
            if document not in known:
                raise MergeError(f"{self.name} has no document {document!r}")
            task, _, number = document.rpartition("/")
            yield task, int(number)

    def score(self, results: Mapping[str, Any]) -> Score:
        """Read the score out of what lm-eval returned."""
        found = results["results"][self.name]
        stderr = found.get(f"{self.metric}_stderr,{self.filter}")
        return Score(
            float(found[f"{self.metric},{self.filter}"]),
            float(stderr) if isinstance(stderr, int | float) else None,
            dict(self._values(results["samples"])) if self.documents else {},
        )

    def _values(self, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Any]:
        for leaf in self.leaves:
            for sample in samples.get(leaf, ()):
                if sample["filter"] == self.filter and self.metric in sample:
                    yield f"{leaf}/{sample['doc_id']}", float(sample[self.metric])


def _leaves(name: str, tasks: Tasks) -> tuple[str, ...]:
    if name in tasks.tasks:
        return (name,)
    return tuple(task.task_name for task in tasks.groups[name].get_all_tasks())


def _chosen(name: str, given: Any, tasks: Tasks, leaves: Sequence[str]) -> tuple[str, str]:
    """Choose the metric and the filter of answers that were asked for; by default the first."""
    group = tasks.groups.get(name)
    known = [*_of_group(group, tasks, leaves)] if group else [*_of_task(tasks.tasks[name])]
    if not known:
        raise MergeError(
            f"{name} is a group of lm-eval that has no score of its own; name its tasks: "
            f"{', '.join(leaves)}"
        )
    words = [",".join(each) for each in known]
    for each, word in zip(known, words, strict=True):
        if given in (None, each[0], word):
            return each
    hint = did_you_mean(str(given), words)
    raise MergeError(f"{name} has no metric {given!r}{hint}; it has {' and '.join(words)}")


def _of_task(task: Any) -> Iterator[tuple[str, str]]:
    filters = [each["name"] for each in task.get_config("filter_list") or ()] or ["none"]
    for metric in task.aggregation():
        for each in filters:
            yield metric, each


def _of_group(group: Any, tasks: Tasks, leaves: Sequence[str]) -> Iterator[tuple[str, str]]:
    """List the metrics that a group aggregates; their filters are those of its tasks, if unsaid."""
    for aggregated in group.aggregate_metric_list or ():
        of_tasks = (pair for leaf in leaves for pair in _of_task(tasks.tasks[leaf]))
        there = dict.fromkeys(pair for pair in of_tasks if pair[0] == aggregated.metric)
        wanted = aggregated.filter_list
        yield from (pair for pair in there if wanted is None or pair[1] in wanted)


def _higher_is_better(metric: str, leaves: Sequence[str], tasks: Tasks) -> bool:
    said = (tasks.tasks[leaf].higher_is_better() or {} for leaf in leaves)
    return next((bool(each[metric]) for each in said if each.get(metric) is not None), True)


def _documents(leaves: Sequence[str], tasks: Tasks) -> Iterator[str]:
    for leaf in leaves:
        task = tasks.tasks[leaf]
        n_all = len(task.eval_docs)
        limit = size(task, tasks.prompting.limit)
        yield from (f"{leaf}/{i}" for i in range(n_all if limit is None else min(limit, n_all)))
