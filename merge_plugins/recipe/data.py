"""Parse the recipe key ``data:`` and load the calibration examples that it names.

A value is a JSONL file, ``task:NAME`` for the training split of a harness's task, or a mapping with
either ``path`` or ``task`` and any other fields of `Data`. Rows of a file have one of these forms::

    {"text": …}                                                 a plain text
    {"prompt" | "instruction" | "question": …, ("input": …), "response" | "output" | …: …}
    {"input": …, "output": …}                                   LM-Cocktail's form
    {"query": …, "pos": [...], "neg": [...]}                    retrieval

with an optional number ``"label"``. Harnesses register their tasks by entry point: see `TASKS`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from merge_plugins.api import Example
from merge_plugins.errors import DataError, RecipeError, UntrustedCodeError, nearest_or_all
from merge_plugins.recipe.files import path_of

TASKS = "merge_plugins.tasks"
"""Entry point group of functions ``(name, include_path, trust_remote_code)`` that return the
examples of a task's training split, or None if there is no task of that name. Where that would run
code that came with the task, and it is not trusted, they raise `UntrustedCodeError`. For a
classifier they are called with `Data.columns` as ``columns``."""
PROMPTS = ("prompt", "instruction", "question")
RESPONSES = ("response", "output", "answer", "completion")
KEYS = ("text", *PROMPTS, "input", *RESPONSES, "query", "pos", "neg", "label")
ALIASES = {"nums_fisher_examples": "limit", "nums_regmean_examples": "limit"}
"""Alternative names of fields, from the research repositories."""


@dataclass(frozen=True)
class Data:
    """Examples that calibrate a model, and the way they are batched."""

    path: str | None = None
    """Absolute path of a JSONL file."""
    task: str | None = None
    """Name of a task; its training split is used."""
    include_path: str | None = None
    """Absolute path of a folder with more tasks, as in lm-eval."""
    limit: int = 256
    """Maximum number of examples; from more, this many are sampled and kept in file order."""
    max_length: int = 512
    """Maximum tokens per example, or the tokenizer's own limit if that is less. A text keeps its
    first tokens; a prompt with a response keeps its last."""
    batch_size: int = 8
    """Examples per batch."""
    seed: int = 0
    """Seed for sampling `limit` examples."""
    trust_remote_code: bool | None = field(default=False, compare=False)
    """Whether code that comes with the task may run. No key of a recipe: see `Recipe.trusting`."""
    columns: tuple[str, ...] | None = field(default=None, metadata={"is_key": False})
    """Columns of a task's rows that hold the texts of a classifier, () for those the harness knows;
    None: the harness's prompts. No key of a recipe: see `Recipe.data_of`."""

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
        """Name the file or task as the short form of a recipe does."""
        return self.path or f"task:{self.task}"

    def examples(self) -> tuple[Example, ...]:
        """Load the examples, or raise `DataError` with the file and line of an invalid row."""
        return _examples(self, _stamp(self.path))

    def check(self) -> None:
        """Raise `MergeError` if the examples cannot be loaded, or not without code nobody allowed.

        With `trust_remote_code` None, what only that code could tell is left unchecked.
        """
        try:
            self.examples()
        except UntrustedCodeError:
            if self.trust_remote_code is not None:
                raise

    @property
    def digest(self) -> str:
        """Hash the examples, `max_length` and `batch_size`, but no path: 32 hex digits."""
        rows = [dataclasses.astuple(example) for example in self.examples()]
        text = json.dumps([rows, self.max_length, self.batch_size])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def as_setting(self, shown: Callable[[str], str] = str) -> str | dict[str, Any]:
        """Convert to the YAML value of ``data:``: the source alone, or a mapping of the set fields.

        ``shown`` converts each path to the text that is written.
        """
        changed = {
            f.name: getattr(self, f.name)
            for f in KEYS_OF_DATA
            if getattr(self, f.name) != f.default
        }
        changed |= {key: shown(changed[key]) for key in ("path", "include_path") if key in changed}
        if len(changed) > 1:
            return changed
        return str(changed["path"]) if self.path else self.source


KEYS_OF_DATA = tuple(
    f for f in dataclasses.fields(Data) if f.compare and f.metadata.get("is_key", True)
)
"""Fields of `Data` that a recipe may set."""


def from_setting(given: Any, folder: Path) -> Data | None:
    """Parse a recipe's ``data:``; relative paths start at ``folder``."""
    if given is None or isinstance(given, Data):
        return given
    if isinstance(given, str) and given:
        task = given.removeprefix("task:")
        given = {"path": given} if task == given else {"task": task}
    if not isinstance(given, Mapping) or not given:
        raise RecipeError(
            f"data is a JSONL file, task:<name>, or a mapping {{path, limit, …}}; got {given!r}"
        )
    known = [f.name for f in KEYS_OF_DATA]
    settings: dict[str, Any] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name not in known:
            hint = nearest_or_all(str(key), known)
            raise RecipeError(f"data: no key {key!r}{hint}")
        if name in settings:
            raise RecipeError(f"data: {name} is given twice")
        settings[name] = value
    for key in ("path", "task", "include_path"):
        if key in settings and (not isinstance(settings[key], str) or not settings[key]):
            raise RecipeError(f"data: {key} is a name, in quotes; got {settings[key]!r}")
        if key in settings and key != "task":
            settings[key] = str(path_of(settings[key], folder))
    return Data(**settings)


def _stamp(path: str | None) -> tuple[int, int] | None:
    """Read a file's modification time (ns) and size, a cache key; None if there is no file."""
    with suppress(OSError):
        status = Path(path or "").stat()
        return status.st_mtime_ns, status.st_size
    return None


@functools.lru_cache(maxsize=8)
def _examples(data: Data, stamp: tuple[int, int] | None) -> tuple[Example, ...]:
    examples = _read(Path(data.path)) if data.path else _of_task(data)
    if not examples:
        raise DataError(f"{data.source} holds no examples")
    kept: Sequence[int] = range(len(examples))
    if len(examples) > data.limit:
        kept = sorted(random.Random(data.seed).sample(kept, data.limit))
    return tuple(examples[i] for i in kept)


def _read(path: Path) -> list[Example]:
    examples = []
    if path.exists() and not path.is_file():
        raise DataError(f"calibration data {path} is no file. Name a JSONL file.")
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    examples.append(_parsed(line, f"{path}, line {number}"))
    except UnicodeDecodeError as exc:
        raise DataError(f"{path} is not UTF-8 text: {exc}") from exc
    except OSError as exc:
        raise DataError(f"no calibration data {path}: {exc.strerror}. Check data:.") from exc
    return examples


def _parsed(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except (RecursionError, ValueError) as exc:
        raise DataError(f"{where}: not JSON: {exc}. One JSON object per line.") from exc
    return example(row, where)


def example(row: Any, where: str) -> Example:
    """Parse one row, or raise `DataError` with the fault; ``where`` is the row's location."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    for key in row:
        if key not in KEYS:
            hint = nearest_or_all(key, KEYS)
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
    """Find the one key of ``keys`` that a row has, or None; raise `DataError` for several."""
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
    passages = []
    for key in ("pos", "neg"):
        texts = row.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: {key} is a list of texts; got {texts!r}")
        passages.append(tuple(texts))
    return passages


def _of_task(data: Data) -> Sequence[Example]:
    for point in entry_points(group=TASKS):
        split: Callable[..., Sequence[Example] | None] = point.load()
        options = {} if data.columns is None else {"columns": data.columns}
        examples = split(data.task, data.include_path, bool(data.trust_remote_code), **options)
        if examples is not None:
            return examples
    raise DataError(
        f"no harness here has a task {data.task!r}; check data:, or name a JSONL file "
        "(with lm-eval's --include_path, write data: {task: …, include_path: …})"
    )
