"""What stands under ``search:`` in a search.yaml, besides the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge_plugins.errors import MergeError, did_you_mean, nearest_or_all
from merge_plugins.plugins.values import is_number
from merge_plugins.recipe import files
from merge_plugins.recipe.parsing import from_yaml

KEYS = ("tasks", "budget", "sampler", "split", "seed", "pareto", "racing", "subset", "rerun")
"""Keys under ``search:``."""
BUDGET = ("trials", "hours")


@dataclass(frozen=True)
class Settings:
    """How a search goes about it."""

    tasks: Mapping[str, Any] = field(default_factory=dict)
    """For an adapter to read: what is scored."""
    trials: int | None = None
    hours: float | None = None
    sampler: str = "tpe"
    tune: float | int | None = None
    """Documents to tune on: a share of each goal's, a number, or None for all."""
    seed: int = 0
    pareto: bool = False
    racing: bool = False
    subset: str | None = None
    """``disagree``: tune on documents on which the models that are merged differ."""
    rerun: int = 3
    """How many of the best are scored whole at the end."""

    @classmethod
    def parse(cls, given: Any) -> Settings:
        """Parse the mapping under ``search:``, or raise `MergeError`."""
        given = _mapping(given, "search", KEYS)
        budget = _mapping(given.get("budget", {}), "search.budget", BUDGET)
        split = _mapping(given.get("split", {}), "search.split", ("tune",))
        settings = cls(
            tasks=_tasks(given.get("tasks", {})),
            trials=_whole(budget, "trials", "search.budget", 1),
            hours=_positive(budget, "hours", "search.budget"),
            sampler=str(given.get("sampler", "tpe")),
            tune=_tune(split.get("tune")),
            seed=_whole(given, "seed", "search", 0) or 0,
            pareto=_truth(given, "pareto"),
            racing=_truth(given, "racing"),
            subset=given.get("subset"),
            rerun=3 if given.get("rerun") is None else _whole(given, "rerun", "search", 0) or 0,
        )
        if settings.subset not in (None, "disagree"):
            raise MergeError(f"search.subset is disagree, or left out; got {settings.subset!r}")
        if settings.pareto and settings.racing:
            raise MergeError("search: racing stops by one number; pareto has several. Choose one")
        if settings.trials is None and settings.hours is None and settings.sampler != "grid":
            raise MergeError("search: how long? write budget: {trials: 100}, {hours: 8} or both")
        return settings


@dataclass(frozen=True)
class SearchFile:
    """A search.yaml, read: the recipe that varies, the search, and the model's arguments."""

    recipe: Mapping[str, Any]
    settings: Settings
    model: Mapping[str, Any]
    """For an adapter to read: how the model is loaded and asked."""
    content: Mapping[str, Any]
    """The whole file; the budget may change from one run to the next."""
    folder: Path

    @classmethod
    def load(cls, path: str | Path) -> SearchFile:
        """Load a search.yaml, or raise `MergeError` for what is wrong with its own keys."""
        file = files.path_of(str(path))
        if not file.is_file():
            raise MergeError(f"no search.yaml at {file}; 'merge-plugins search --init' writes one")
        with files.naming(file):
            content = from_yaml(files.read_text(file))
        try:
            return cls.parse(content, file.resolve().parent)
        except MergeError as exc:
            raise MergeError(f"{file}: {exc}") from exc

    @classmethod
    def parse(cls, content: Any, folder: Path) -> SearchFile:
        """Parse the mapping of a search.yaml; paths in it start from ``folder``."""
        if not isinstance(content, Mapping):
            raise MergeError("a search.yaml is a recipe with search: and model: beside its keys")
        recipe = {key: value for key, value in content.items() if key not in ("search", "model")}
        if "search" not in content:
            near = next((key for key in recipe if did_you_mean(str(key), ["search"])), None)
            hint = f"; did you mean it by {near!r}?" if near else ""
            raise MergeError(f"no search: key with tasks and a budget{hint}")
        model = content.get("model") or {}
        if not isinstance(model, Mapping):
            raise MergeError(f"model is a mapping of arguments, {{dtype: …}}; got {model!r}")
        return cls(recipe, Settings.parse(content["search"]), model, content, folder)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What may not change from one run to the next: everything but the budget."""
        search = {k: v for k, v in self.content["search"].items() if k not in ("budget", "rerun")}
        return {**self.content, "search": search}


def _mapping(given: Any, where: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise MergeError(f"{where} is a mapping of {', '.join(known)}; got {given!r}")
    for key in given:
        if key not in known:
            hint = nearest_or_all(str(key), known)
            raise MergeError(f"{where}: no key {key!r}{hint}")
    return given


def _tasks(given: Any) -> Mapping[str, Any]:
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list):
        given = dict.fromkeys(given)
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise MergeError(
            f"search.tasks is a list of names, or {{name: {{metric: …, weight: …}}}}; got {given!r}"
        )
    return dict(given)


def _whole(given: Mapping[str, Any], key: str, where: str, low: int) -> int | None:
    value = given.get(key)
    if value is not None and (type(value) is not int or value < low):
        raise MergeError(f"{where}.{key} is a whole number from {low} on; got {value!r}")
    return value


def _positive(given: Mapping[str, Any], key: str, where: str) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    if not is_number(value) or not value > 0:
        raise MergeError(f"{where}.{key} is a number above 0; got {value!r}")
    return float(value)


def _truth(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if not isinstance(value, bool):
        raise MergeError(f"search.{key} is true or false; got {value!r}")
    return value


def _tune(value: Any) -> float | int | None:
    whole = type(value) is int and value > 0
    if value is None or whole or (isinstance(value, float) and 0 < value < 1):
        kept: float | int | None = value
        return kept
    raise MergeError(
        f"search.split.tune is a share between 0 and 1, or a number of documents; got {value!r}"
    )
