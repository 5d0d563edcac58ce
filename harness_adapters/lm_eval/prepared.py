"""Tasks of lm-eval with their documents and requests, made once for all models that they score."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from lm_eval.tasks import TaskManager
from packaging.version import Version

from harness_adapters.lm_eval.discovery import add_tasks, task_folders
from harness_adapters.lm_eval.prompting import Generators, Prompting
from merge_plugins.errors import MergeError, did_you_mean

OLDEST = Version("0.4.12")
"""The first release that tells tasks from groups when it loads them."""


class Tasks:
    """Tasks and groups by lm-eval's names, loaded; requests are made when a model asks first."""

    def __init__(
        self, names: Sequence[str], prompting: Prompting, include_path: Any, metadata: Any
    ) -> None:
        self.prompting = prompting
        with prompting.seeded():
            loaded = _load(names, include_path, metadata)
            self._loaded = Generators.now()
        self.tasks: Mapping[str, Any] = loaded["tasks"]
        self.groups: Mapping[str, Any] = loaded["groups"]
        for task in self.tasks.values():
            _set_up(task, prompting)
        self._build = {name: task.build_all_requests for name, task in self.tasks.items()}
        self._requests: dict[str, dict[int, list[Any]]] = {}
        self._made_for: str | None = None
        self._drawn = self._loaded
        for name, task in self.tasks.items():
            task.build_all_requests = partial(self._hand_out, name)

    def ready(self, lm: Any) -> None:
        """Make the requests, unless they are; leave the generators as they would be after that."""
        chat = self.prompting.apply_chat_template
        template = lm.tokenizer_name if chat else ""
        if self._made_for != template:
            self._loaded.restore(self.prompting)
            for name, task in self.tasks.items():
                self._requests[name] = self._make(name, task, lm, template)
            self._made_for = template
            self._drawn = Generators.now()
        self._drawn.restore(self.prompting)

    def some(self, names: Iterable[str], samples: Mapping[str, Any] | None) -> dict[str, Any]:
        """Select tasks and groups as `lm_eval.evaluate` takes them; ``samples``: only those tasks.

        Selected groups come with the groups within, as lm-eval computes them all.
        """
        groups = {name: self.groups[name] for name in names if name in self.groups}
        for group in [*groups.values()]:
            groups |= {each.name: each for each in group.get_all_groups()}
        leaves = {t.task_name for group in groups.values() for t in group.get_all_tasks()} | {
            *names
        }
        tasks = {
            name: task
            for name, task in self.tasks.items()
            if name in leaves and (samples is None or name in samples)
        }
        return {"tasks": tasks, "groups": groups}

    def _make(self, name: str, task: Any, lm: Any, template: str) -> dict[int, list[Any]]:
        options = self.prompting.for_requests
        chat = options["apply_chat_template"]
        task.set_fewshot_seed(seed=self.prompting.fewshot_random_seed)
        self._build[name](
            **{**options, "apply_chat_template": bool(chat)},
            limit=size(task, self.prompting.limit),
            rank=lm.rank,
            world_size=lm.world_size,
            chat_template=lm.apply_chat_template if chat else None,
            tokenizer_name=template,
        )
        requests: dict[int, list[Any]] = {}
        for request in task.instances:
            requests.setdefault(request.doc_id, []).append(request)
        return requests

    def _hand_out(self, name: str, *, samples: Sequence[int] | None = None, **_: Any) -> None:
        """Give a task its requests, as if it had just built them; some documents' or all."""
        made = self._requests[name]
        self.tasks[name]._instances = [
            _unanswered(request, place)
            for place, document in enumerate(made if samples is None else samples)
            for request in made[document]
        ]


def size(task: Any, limit: float | None) -> int | None:
    """Return how many documents of a task are scored, as lm-eval counts them; None: all."""
    from lm_eval.evaluator_utils import get_sample_size

    found: int | None = get_sample_size(task, limit)
    return found


def _unanswered(request: Any, place: int) -> Any:
    """Copy a request without its answer, as that of a document at another place."""
    arguments = request.arguments
    if isinstance(arguments, tuple):
        arguments = tuple(copy.deepcopy(a) if isinstance(a, dict) else a for a in arguments)
    metadata = (request.task_name, place, request.repeats)
    return replace(request, arguments=arguments, metadata=metadata, resps=[], filtered_resps={})


def _load(names: Sequence[str], include_path: Any, metadata: Any) -> Any:
    if Version(version("lm_eval")) < OLDEST:
        raise MergeError(
            f"the evaluator needs lm-eval {OLDEST} or later, and this is {version('lm_eval')}: "
            "pip install --upgrade lm-eval"
        )
    if not names:
        raise MergeError("no task named; tasks are lm-eval's: gsm8k, or {gsm8k: {metric: …}}")
    manager = manager_of(names, include_path, metadata)
    for name in names:
        if name in manager.all_tags:
            tagged = manager.load(name)["tasks"]
            raise MergeError(
                f"{name} is a tag of lm-eval, which has no score of its own; name its tasks: "
                f"{', '.join(tagged)}"
            )
    try:
        return manager.load(list(names))
    except ValueError as exc:  # a task both by itself and in a group
        raise MergeError(f"lm-eval does not load {', '.join(names)}: {exc}") from exc


def manager_of(names: Sequence[str], include_path: Any, metadata: Any) -> TaskManager:
    """Find a manager that has tasks of these names, or raise `MergeError`."""
    for manager in _managers(include_path, metadata):
        if all(name in manager.all_tasks for name in names):
            return manager
    name = next(name for name in names if name not in manager.all_tasks)
    raise MergeError(
        f"lm-eval has no task {name!r}{did_you_mean(name, manager.all_tasks)}. "
        "'lm_eval ls tasks' lists them"
    )


def _managers(include_path: Any, metadata: Any) -> Iterable[TaskManager]:
    """Yield a manager of the user's tasks and ours; then one of lm-eval's, which takes seconds."""
    theirs = include_path or []
    theirs = list(theirs) if isinstance(theirs, list | tuple) else [theirs]
    few = [*task_folders(), *theirs]
    yield TaskManager(include_path=few, include_defaults=False, metadata=metadata)
    add_tasks()
    yield TaskManager(include_path=include_path, metadata=metadata)


def _set_up(task: Any, prompting: Prompting) -> None:
    """Set what `lm_eval.simple_evaluate` sets in a task before it builds requests."""
    if prompting.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=prompting.gen_kwargs, update=True)
    own, given = task.get_config("num_fewshot"), prompting.num_fewshot
    if own is None or (given is not None and own != 0):
        task.set_config(key="num_fewshot", value=given or 0)
