"""Add our models and tasks to lm-eval releases without plugin discovery.

The names are declared once, as entry points in pyproject.toml. Releases of lm-eval that read them
are left alone, separately for models and for tasks because upstream adds the two separately.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distribution, version
from importlib.util import find_spec
from typing import Any

from packaging.version import Version


def imported(name: str) -> None:
    """Add models or tasks after the import of ``lm_eval.models`` or ``lm_eval.tasks``."""
    {"lm_eval.models": add_models, "lm_eval.tasks": add_tasks}[name]()


@functools.cache
def add_models() -> None:
    """Register our entry points of ``lm_eval.models`` by name, without importing the classes."""
    from lm_eval.api import registry

    if hasattr(registry, "load_plugins"):
        return
    models = registry.MODEL_REGISTRY
    for point in _entry_points("lm_eval.models"):
        if point.name in models:
            continue
        if hasattr(models, "register"):  # lm-eval 0.4.10 and later
            models.register(point.name, target=point.value)
        else:
            models[point.name] = LazyModel(point)


@functools.cache
def add_tasks() -> None:
    """Make every `TaskManager` that includes lm-eval's own tasks include ours."""
    from lm_eval import tasks

    if hasattr(getattr(tasks, "manager", None), "discover_plugin_task_paths"):
        return
    original = tasks.TaskManager.__init__
    parameters = inspect.signature(original)
    ours = list(task_folders())
    last_path_wins = Version(version("lm_eval")) >= Version("0.4.9.1")

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        given = parameters.bind(*args, **kwargs).arguments
        if given.get("include_defaults", True):  # else the caller wants only tasks of their own
            theirs = given.get("include_path") or []
            theirs = list(theirs) if isinstance(theirs, list | tuple) else [theirs]
            given["include_path"] = ours + theirs if last_path_wins else theirs + ours
        original(**given)

    tasks.TaskManager.__init__ = init


def task_folders() -> Iterator[str]:
    """Yield our folders of task YAML files, wherever they are installed."""
    for point in _entry_points("lm_eval.tasks"):
        spec = find_spec(point.value)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no folder {point.value}; install merge-plugins again")
        yield next(iter(spec.submodule_search_locations))


def _entry_points(group: str) -> Iterator[EntryPoint]:
    points = distribution("merge-plugins").entry_points
    return (point for point in points if point.group == group)


class LazyModel:
    """Import a model class on first use, in the plain dict that lm-eval below 0.4.10 keeps."""

    def __init__(self, point: EntryPoint) -> None:
        self._point = point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._point.load(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Construct the model, as calling its class does."""
        return self._point.load()(*args, **kwargs)
