"""Calibration data: what ``data:`` in a recipe names, and the examples in it.

A value is a JSONL file, ``task:NAME`` for the training split of a harness's task, or a mapping with
one of ``path`` and ``task`` and any other field of `Data`. Rows of a file are one of::

    {"text": …}                                                 a plain text
    {"prompt" | "instruction" | "question": …, ("input": …), "response" | "output" | …: …}
    {"input": …, "output": …}                                   the same, as LM-Cocktail has it
    {"query": …, "pos": [...], "neg": [...]}                    retrieval

each with an optional ``"label"``. Harnesses provide their tasks by entry point: see `TASKS`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from merge_plugins.api import Example
from merge_plugins.errors import DataError, RecipeError, did_you_mean

TASKS = "merge_plugins.tasks"
"""Entry points in this group are functions ``(name, include_path)`` that return the examples of the
training split of a task, or None if they know no such task."""
PROMPTS = ("prompt", "instruction", "question")
RESPONSES = ("response", "output", "answer", "completion")
KEYS = ("text", *PROMPTS, "input", *RESPONSES, "query", "pos", "neg", "label")
ALIASES = {"nums_fisher_examples": "limit", "nums_regmean_examples": "limit"}
"""Other spellings of a field: the seeds' own."""


@dataclass(frozen=True)
class Data:
    """Which examples calibrate a model, and how they are cut into batches."""

    path: str | None = None
    """A JSONL file: an absolute path."""
    task: str | None = None
    """A task whose training split is used."""
    include_path: str | None = None
    """A folder with more tasks, as in lm-eval: an absolute path."""
    limit: int = 256
    """How many examples; of a larger file, that many are drawn, in the file's order."""
    max_length: int = 512
    """Tokens per example, or what the model's tokenizer allows if that is less: the first of a
    text, the last of a prompt and response."""
    batch_size: int = 8
    seed: int = 0
    """Which examples are drawn."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.task is None):
            raise RecipeError("data takes one of path: <file.jsonl> and task: <name>")
        if self.include_path is not None and self.task is None:
            raise RecipeError("data: include_path is where a task: is looked for; add task: <name>")
        for name in ("limit", "max_length", "batch_size", "seed"):
            value, least = getattr(self, name), int(name != "seed")
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(f"data: {name} is a whole number, {least} or more; got {value!r}")

    @property
    def source(self) -> str:
        """The file or task, as a recipe's short form names it."""
        return self.path or f"task:{self.task}"

    def examples(self) -> tuple[Example, ...]:
        """Return the examples, or raise `DataError` naming the file and line that is none."""
        return _examples(self, _stamp(self.path))

    @property
    def digest(self) -> str:
        """What the examples and their batches are, not where: 32 hex digits."""
        held = [dataclasses.astuple(example) for example in self.examples()]
        text = json.dumps([held, self.max_length, self.batch_size])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def as_setting(self, shown: Callable[[str], str] = str) -> str | dict[str, Any]:
        """Return the data as a recipe holds it: its source, or a mapping with what else is set.

        ``shown`` says how each path is spelled.
        """
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }
        changed |= {key: shown(changed[key]) for key in ("path", "include_path") if key in changed}
        if len(changed) > 1:
            return changed
        return str(changed["path"]) if self.path else self.source


def from_setting(given: Any, folder: Path) -> Data | None:
    """Read a recipe's ``data:``; a path is relative to ``folder``."""
    if given is None or isinstance(given, Data):
        return given
    if isinstance(given, str) and given:
        task = given.removeprefix("task:")
        given = {"path": given} if task == given else {"task": task}
    if not isinstance(given, Mapping) or not given:
        raise RecipeError(
            f"data is a JSONL file, task:<name>, or a mapping {{path, limit, …}}; got {given!r}"
        )
    known = [f.name for f in dataclasses.fields(Data)]
    held: dict[str, Any] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name not in known:
            hint = did_you_mean(str(key), known) or f"; there are {', '.join(known)}"
            raise RecipeError(f"data: no key {key!r}{hint}")
        if name in held:
            raise RecipeError(f"data: {name} is given twice")
        held[name] = value
    for key in ("path", "task", "include_path"):
        if key in held and (not isinstance(held[key], str) or not held[key]):
            raise RecipeError(f"data: {key} is a name, in quotes; got {held[key]!r}")
        if key in held and key != "task":
            held[key] = os.path.normpath(Path.cwd() / folder / Path(held[key]).expanduser())
    return Data(**held)


def _stamp(path: str | None) -> tuple[int, int] | None:
    """Return what changes when a file does."""
    with suppress(OSError):
        found = Path(path or "").stat()
        return found.st_mtime_ns, found.st_size
    return None


@functools.lru_cache(maxsize=8)
def _examples(data: Data, stamp: tuple[int, int] | None) -> tuple[Example, ...]:
    found = _read(Path(data.path)) if data.path else _of_task(str(data.task), data.include_path)
    if not found:
        raise DataError(f"{data.source} holds no examples")
    kept: Sequence[int] = range(len(found))
    if len(found) > data.limit:
        kept = sorted(random.Random(data.seed).sample(kept, data.limit))
    return tuple(found[i] for i in kept)


def _read(path: Path) -> list[Example]:
    found = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found.append(_parsed(line, f"{path}, line {number}"))
    except UnicodeDecodeError as exc:
        raise DataError(f"{path} is not UTF-8 text: {exc}") from exc
    except OSError as exc:
        raise DataError(f"no calibration data {path}: {exc.strerror}. Check data:.") from exc
    return found


def _parsed(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as exc:
        raise DataError(f"{where}: not JSON: {exc}. One JSON object per line.") from exc
    return example(row, where)


def example(row: Any, where: str) -> Example:
    """Read one row, or raise `DataError` saying what is wrong with it and ``where`` it stands."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    for key in row:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS) or f"; there are {', '.join(KEYS)}"
            raise DataError(f"{where}: no key {key!r}{hint}")
    label = row.get("label")
    if label is not None and not isinstance(label, int | float):
        raise DataError(f"{where}: label is a number; got {label!r}")
    prompt = _only(row, ("text", *PROMPTS, "query"), where) or ("input" if "input" in row else None)
    if prompt is None:
        raise DataError(f"{where}: needs text, prompt and response, or query; has {[*row]}")
    if prompt == "query":
        return Example(_text(row, prompt, where), "", label, *_passages(row, where))
    if prompt == "text":
        _only(row, ("text", "input", *RESPONSES), where)
        return Example(_text(row, prompt, where), "", label)
    parts = [_text(row, key, where) for key in dict.fromkeys((prompt, "input")) if row.get(key)]
    response = _only(row, RESPONSES, where)
    if not parts:
        raise DataError(f"{where}: {prompt} is empty")
    return Example("\n".join(parts), _text(row, response, where) if response else "", label)


def _only(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str | None:
    """Return which of some keys a row has; it may have one at most."""
    found = [key for key in keys if key in row]
    if len(found) > 1:
        raise DataError(f"{where}: {' and '.join(found)} exclude each other; keep one")
    return found[0] if found else None


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or (not value and key not in RESPONSES):
        raise DataError(f"{where}: {key} is a text; got {value!r}")
    return value


def _passages(row: Mapping[str, Any], where: str) -> list[tuple[str, ...]]:
    found = []
    for key in ("pos", "neg"):
        texts = row.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: {key} is a list of texts; got {texts!r}")
        found.append(tuple(texts))
    return found


def _of_task(name: str, include_path: str | None) -> Sequence[Example]:
    for point in entry_points(group=TASKS):
        split: Callable[[str, str | None], Sequence[Example] | None] = point.load()
        found = split(name, include_path)
        if found is not None:
            return found
    raise DataError(
        f"no harness here has a task {name!r}; check data:, or name a JSONL file "
        "(with lm-eval's --include_path, write data: {task: …, include_path: …})"
    )
