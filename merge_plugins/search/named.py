"""Find an objective by the name that a user gives: a harness, a loss, a function or a command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.installing import to_install
from merge_plugins.recipe.data import from_setting
from merge_plugins.search.objective import Objective

HARNESSES = "merge_plugins.objectives"
"""Entry point group of functions ``(tasks, settings)`` that return a harness's `Objective`."""
LOSSES = ("loss", "entropy")
FUNCTION = re.compile(r".+\.py:\w+")


def objective(
    name: str,
    tasks: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    trust_remote_code: bool = False,
) -> Objective:
    """Build the objective of a name.

    ``lm-eval``, ``mteb``, or another harness with an adapter. ``loss=DATA``: LM-Cocktail's loss on
    examples; ``entropy=DATA``: AdaMerging's; DATA is a JSONL file or ``task:NAME``.
    ``file.py:function``: a function of model, tokenizer and recipe. ``python eval.py {folder}``: a
    command. The last two run code, so only a user names them, no file that came from elsewhere.

    ``tasks``: what is scored, which counts, and how much. ``settings``: how the model is loaded and
    asked: for a harness its own arguments, for losses and functions those of `load_merged`, for a
    command ``timeout``.
    """
    kind, _, data = name.partition("=")
    if "{folder}" in name:
        return _program(name, tasks, settings, trust_remote_code)
    if FUNCTION.fullmatch(name):
        from merge_plugins.search.function import FunctionObjective  # seconds: transformers

        options = {**settings, "trust_remote_code": trust_remote_code}
        return FunctionObjective.from_file(name, tasks, **options)
    if kind in LOSSES and data:
        return _loss(kind, data, settings, trust_remote_code)
    points = {point.name: point for point in entry_points(group=HARNESSES)}
    if name not in points:
        hint = did_you_mean(kind, (*points, *LOSSES))
        raise MergeError(
            f"no objective {name!r}{hint}. It is a harness ({', '.join(points) or 'none here'}), "
            "loss=DATA, entropy=DATA, file.py:function, or a command with {folder}"
        )
    own = {"trust_remote_code": True} if trust_remote_code else {}
    found: Objective = _loaded(points[name])(tasks, {**settings, **own})
    return found


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except ModuleNotFoundError as exc:
        dist = point.dist
        has_extra = dist and point.name in (dist.metadata.get_all("Provides-Extra") or ())
        hint = f": {to_install(point.name, dist.name)}" if dist and has_extra else ""
        raise MergeError(
            f"objective {point.name} needs {exc.name}, which is not installed{hint}"
        ) from exc


def _program(
    name: str, tasks: Mapping[str, Any], settings: Mapping[str, Any], trust: bool
) -> Objective:
    from merge_plugins.search.program import ProgramObjective  # seconds: transformers

    for key in settings:
        if key != "timeout":
            raise MergeError(f"a command takes timeout from model:, and no {key!r}; write it there")
    return ProgramObjective(name, tasks, **settings, trust_remote_code=trust)


def _loss(kind: str, data: str, settings: Mapping[str, Any], trust: bool) -> Objective:
    from merge_plugins.search import function  # seconds: transformers

    examples = from_setting(data, Path())
    assert examples is not None, "a text was given"
    build = {"loss": function.example_loss, "entropy": function.entropy}[kind]
    return build(examples, **settings, trust_remote_code=trust)
