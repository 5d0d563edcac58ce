"""Read the YAML file of an lm-eval task without running the code that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.errors import DataError


class Inert(yaml.SafeLoader):
    """YAML loader for which ``!function utils.process`` is no more than its text."""


Inert.add_constructor("!function", lambda loader, node: f"!function {node.value}")


def settings(file: Path, includes: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a task's file and the files that it includes; raise `DataError` for what is no task."""
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Inert)
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise DataError(f"{file} is no task of lm-eval: {exc}") from exc
    if not isinstance(found, dict):
        raise DataError(f"{file} is no task of lm-eval: it holds no mapping")
    given = found.pop("include", [])
    merged: dict[str, Any] = {}
    for name in given if isinstance(given, list) else [given]:
        other = (file.parent / str(name)).resolve()
        if other == file.resolve() or other in includes:
            raise DataError(f"{file} includes itself")
        merged |= settings(other, (*includes, file.resolve()))
    return merged | found


def split_of_training(task: Mapping[str, Any], name: str) -> str:
    """Find the split to calibrate on, or raise `DataError` where it is the one that is scored."""
    training = task.get("training_split")
    scored = task.get("test_split") or task.get("validation_split")
    if not training or training == scored:
        raise no_training_split(name, training)
    return str(training)


def no_training_split(name: str, scored: str | None) -> DataError:
    """Build the error for a task without a training split, or with ``scored`` in its place."""
    return DataError(
        f"data: task {name} has no training split"
        f"{f' but the one it is scored on, {scored}' if scored else ''}; name another task, "
        "or a JSONL file"
    )
