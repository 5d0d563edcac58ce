"""Score one merge after another on lm-eval's tasks, in one process.

    with Evaluator({"gsm8k": {"metric": "exact_match,strict-match"}}, num_fewshot=5) as evaluator:
        print(evaluator.score(recipe)["gsm8k"].value)

Scores, standard errors and answers are those of ``lm_eval --model merged`` on the same recipe.
Tasks are loaded once, requests made and tokenised once, and sources stay open. The next merge is
written over the last where that is possible.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import finalize

from lm_eval import evaluator
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.loggers.utils import get_commit_from_path
from lm_eval.utils import simple_parse_args_string

from harness_adapters.lm_eval.depends import identity
from harness_adapters.lm_eval.goals import Scored
from harness_adapters.lm_eval.prepared import Tasks, manager_of
from harness_adapters.lm_eval.prompting import Prompting
from merge_plugins import shared_sources
from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.recipe import Recipe
from merge_plugins.search.objective import Goal, Score

if TYPE_CHECKING:
    from harness_adapters.lm_eval.classifiers.model import MergedClassifiers
    from harness_adapters.lm_eval.live import LiveLM
    from harness_adapters.lm_eval.vllm import MergedVLLM

    Live: TypeAlias = LiveLM | MergedClassifiers | MergedVLLM

MODELS = {
    "merged": "harness_adapters.lm_eval.live:LiveLM",
    "merged-classifiers": "harness_adapters.lm_eval.classifiers.model:MergedClassifiers",
    "merged-vllm": "harness_adapters.lm_eval.vllm:MergedVLLM",
}
"""Classes of models by lm-eval's names, each of which becomes one merge after another."""
LOG_OF_VLLM = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
"""Read as vLLM is imported: else fifty lines of each engine stand among a search's candidates."""


class Evaluator:
    """An `Objective`: lm-eval's tasks, each scored by one metric.

    ``tasks``: names of tasks or groups, separated by commas or in a list; or a mapping from names
    to ``metric`` (lm-eval's, with its filter: ``exact_match,strict-match``; by default the task's
    first), ``weight`` and ``higher_is_better``. ``model``: ``merged``, ``merged-classifiers`` or
    ``merged-vllm``; ``model_args``: its arguments in lm-eval, without the recipe. ``resident``: a
    device in whose memory sources stay, as of `shared_sources`. ``progress``: whether lm-eval shows
    a progress bar for each candidate.

    The others are lm-eval's, with the names and defaults of its command line; ``prompting``: the
    fields of `Prompting`.

    Raises `MergeError` for what is wrong with these before a model is loaded.
    """

    def __init__(
        self,
        tasks: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None],
        *,
        model: str = "merged",
        model_args: str | Mapping[str, Any] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        use_cache: str | None = None,
        resident: str | None = None,
        progress: bool = True,
        include_path: str | Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        bootstrap_iters: int = 100000,
        confirm_run_unsafe_code: bool = False,
        **prompting: Any,
    ) -> None:
        if model not in MODELS:
            raise MergeError(f"model is one of {', '.join(MODELS)}; got {model!r}")
        wanted = _by_name(tasks)
        self._model, self._model_class = model, _live_class(model)
        self._open = ExitStack()
        self._closed = finalize(self, self._open.close)  # at the latest when Python ends
        given = _parsed(model_args)
        own = {"batch_size": batch_size, "max_batch_size": max_batch_size, "device": device}
        self._options = given | {name: value for name, value in own.items() if value is not None}
        self._use_cache, self._progress = use_cache, progress
        self._evaluate = {
            "bootstrap_iters": bootstrap_iters,
            "confirm_run_unsafe_code": confirm_run_unsafe_code,
        }
        prompting["gen_kwargs"] = _parsed(prompting.get("gen_kwargs"))
        self._prompting = Prompting(**prompting)
        self._where = (include_path, dict(metadata or {}))
        self._tasks = Tasks([*wanted], self._prompting, *self._where)
        self._scored = {
            name: Scored.read(name, settings or {}, self._tasks)
            for name, settings in wanted.items()
        }
        self._lm: Live | None = None
        self._open.enter_context(shared_sources(resident=resident))

    @classmethod
    def from_settings(cls, tasks: Any, settings: Mapping[str, Any]) -> Evaluator:
        """Build an evaluator from one mapping, whose keys are its own arguments or model_args."""
        own = {*inspect.signature(cls).parameters, *(field.name for field in fields(Prompting))}
        ours = {key: value for key, value in settings.items() if key in own}
        rest = {key: value for key, value in settings.items() if key not in own}
        if ours.get("model") == "merged-vllm":
            for name, value in LOG_OF_VLLM.items():
                os.environ.setdefault(name, value)
        return cls(tasks, **{**ours, "model_args": _parsed(ours.get("model_args")) | rest})

    @property
    def goals(self) -> Mapping[str, Goal]:
        """What is scored: each task or group by its name."""
        return {name: scored.goal for name, scored in self._scored.items()}

    @property
    def documents(self) -> Mapping[str, Sequence[str]]:
        """Ids of the documents of each task or group, ``<task>/<number>``, in lm-eval's order.

        None for a metric that is no mean of its documents' values, such as perplexity.
        """
        return {name: scored.documents for name, scored in self._scored.items()}

    @cached_property
    def identity(self) -> str:
        """A hash of what scores depend on besides the recipe: 16 hex digits.

        Tasks, their versions and documents; few-shot examples, chat template, seeds; arguments that
        may change a model's answers; releases of lm-eval, transformers and torch.
        """
        options = self._model_class.answers_depend_on(self._options)
        return identity(self._tasks, self._scored.values(), self._prompting, options)

    def score(
        self, recipe: Recipe, documents: Mapping[str, Sequence[str]] | None = None
    ) -> Mapping[str, Score]:
        """Score a recipe by each goal; on some documents of the goals that ``documents`` names.

        On some, a document's prompt is what it is among all, and so is a greedy answer or a
        likelihood, except for the last bits where other texts share its batch.
        """
        found = self._run(recipe, documents)
        return {name: scored.score(found) for name, scored in self._chosen(documents).items()}

    def results(
        self, recipe: Recipe, documents: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, Any]:
        """Score a recipe as `score` does; return what lm-eval does: results, samples, config."""
        found = self._run(recipe, documents)
        assert self._lm is not None
        found["config"] = {
            "model": self._model,
            "model_args": recipe.as_dict() | self._options,
            **self._lm.get_model_info(),
            "use_cache": self._use_cache,
            **self._evaluate,
            **asdict(self._prompting),
        }
        return found

    @property
    def test_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are scored on their test split, in lm-eval's order."""
        return tuple(name for name, task in self._tasks.tasks.items() if task.has_test_docs())

    def separately(self, recipe: Recipe) -> Mapping[str, Score]:
        """Score a recipe by lm-eval's own `simple_evaluate` and the model's name, all anew.

        The live model is dropped before; tasks are loaded and requests made again.
        """
        self._lm = None
        options, names = dict(self._options), [*self._scored]
        given = {key: options.pop(key, None) for key in ("batch_size", "max_batch_size", "device")}
        prompting = {**asdict(self._prompting), **self._prompting.for_requests}
        with TemporaryDirectory() as folder, self._prompting.seeded(), _without_git():
            config = Path(folder) / "merge.yaml"
            config.write_text(recipe.to_yaml(), encoding="utf-8")
            found = simple_evaluate(
                self._model,
                {"config": str(config), **options},
                names,
                task_manager=manager_of(names, *self._where),
                log_samples=True,
                **given,
                **prompting,
                **self._evaluate,
            )
        return {name: scored.score(found) for name, scored in self._scored.items()}

    def close(self) -> None:
        """Free the model and the sources."""
        self._lm = None
        self._closed()

    def __enter__(self) -> Evaluator:
        """Close at the end of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def live(self, recipe: Recipe) -> Live:
        """Turn the live model into a recipe's merge, or build one; return it."""
        lm, self._lm = self._lm, None  # dropped after an error, as it may be neither merge
        if lm is None or not lm.become(recipe):
            del lm  # before another takes as much memory
            lm = self._model_class.of(recipe, self._options, self._progress)
            if lm.world_size > 1:
                raise MergeError("an evaluator is one process; start it without a launcher")
        self._lm = lm
        return lm

    def _run(self, recipe: Recipe, documents: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
        """Have lm-eval score all tasks, or some documents of some."""
        chosen = self._chosen(documents)
        samples = None if documents is None else _samples(chosen, documents)
        lm = self.live(recipe)
        with self._prompting.seeded(), self._cached(lm) as model:
            self._tasks.ready(lm)
            found: dict[str, Any] = evaluate(
                model,
                self._tasks.some(chosen, samples),
                samples=samples,
                limit=None if samples is not None else self._prompting.limit,
                **self._evaluate,
                **self._prompting.for_requests,
            )
        return found

    @contextmanager
    def _cached(self, lm: Live) -> Iterator[Any]:
        """Put lm-eval's cache of answers before a model, if it is wanted."""
        if self._use_cache is None:
            yield lm
            return
        cached = CachingLM(lm, f"{self._use_cache}_rank0.db")
        with closing(cached.dbdict):
            yield cached
        lm.set_cache_hook(CacheHook(None))

    def _chosen(self, documents: Mapping[str, Sequence[str]] | None) -> dict[str, Scored]:
        """Select the goals to score; one that has documents is not without any."""
        if documents is None:
            return dict(self._scored)
        for name in documents:
            if name not in self._scored:
                raise MergeError(f"no goal {name!r}{did_you_mean(name, self._scored)}")
        found = {name: self._scored[name] for name in documents}
        return {name: s for name, s in found.items() if documents[name] or not s.documents}


@contextmanager
def _without_git() -> Iterator[None]:
    """Have lm-eval read which commit this folder is at from files, as it does without git.

    Outside a repository, git writes an error to the terminal.
    """
    asked = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: get_commit_from_path(Path.cwd())
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asked


def _samples(
    chosen: Mapping[str, Scored], documents: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    """Number the documents of each task, as lm-eval's ``--samples``."""
    found: dict[str, set[int]] = {}
    for name, scored in chosen.items():
        for task, number in scored.samples(documents[name]):
            found.setdefault(task, set()).add(number)
    return {task: sorted(numbers) for task, numbers in found.items()}


def _live_class(model: str) -> type[Live]:
    try:
        found: type[Live] = resolve_name(MODELS[model])
    except ImportError as exc:
        raise MergeError(f"{model} needs a package that is not installed: {exc}") from exc
    return found


def _by_name(tasks: Any) -> Mapping[str, Mapping[str, Any] | None]:
    if isinstance(tasks, str):
        tasks = tasks.split(",")
    if not isinstance(tasks, Mapping):
        return dict.fromkeys(tasks)
    for name, settings in tasks.items():
        if not isinstance(settings, Mapping | None):
            raise MergeError(f"{name}: settings of a task are a mapping; got {settings!r}")
    return tasks


def _parsed(arguments: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Parse lm-eval's ``name=value,name=value``."""
    if isinstance(arguments, str):
        return dict(simple_parse_args_string(arguments))
    return dict(arguments or {})
