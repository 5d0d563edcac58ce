"""Read the training split of an lm-eval task as calibration data: ``data: task:NAME``.

Prompts and answers are formatted as lm-eval formats them: by the task's ``doc_to_text`` and
``doc_to_target``, without few-shot examples or a chat template. For a classifier they are the texts
and the label of each row, as the data set has them. The split that lm-eval scores is never used.

To load a task is to run code: its ``!function`` tags, its templates, which lm-eval renders outside
of Jinja's sandbox, its metrics and classes. That of an installed package is trusted; that of a
folder named by a recipe runs only with leave.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, overload

from harness_adapters.lm_eval.classifiers.glue import columns_of
from harness_adapters.lm_eval.classifiers.rows import texts_of
from harness_adapters.lm_eval.task_file import no_training_split, settings, split_of_training
from merge_plugins.api import Example
from merge_plugins.errors import DataError, UntrustedCodeError
from merge_plugins.installing import to_install


def training_split(
    name: str,
    include_path: str | None = None,
    trust_remote_code: bool = False,
    columns: Sequence[str] | None = None,
) -> Sequence[Example] | None:
    """Load the training examples of a task; None if lm-eval has no such task.

    ``include_path``, as in lm-eval: a folder with more tasks. ``columns``: see `Data.columns`.
    Raises `DataError` if lm-eval is not installed, or if the task has no training split apart from
    the scored one; `RecipeError` if nobody says which columns have its texts; `UntrustedCodeError`
    if all that can be told without running the task's code is well, and the code is not trusted.
    """
    manager = next((m for m in _managers(name, include_path) if name in m.all_tasks), None)
    if manager is None:
        return None
    if name not in manager.all_subtasks:
        raise DataError(f"data: {name} is a group of lm-eval tasks; name one of them")
    if not trust_remote_code:
        _refuse_code(name, _file(manager, name), include_path)
    texts = None if columns is None else columns_of(name, columns)
    task = _loaded(name, manager)
    config = getattr(task, "config", None)
    training, scored = (
        getattr(config, "training_split", None),
        getattr(config, "test_split", None) or getattr(config, "validation_split", None),
    )
    if not task.has_training_docs() or (training is not None and training == scored):
        raise no_training_split(name, training)
    return Docs(task) if texts is None else Rows(task, texts)


def _refuse_code(name: str, file: Path | None, include_path: str | None) -> None:
    """Raise `UntrustedCodeError` for a task of the user's folder, or a dataset with code."""
    if file is None:  # older releases keep no file of some tasks of their own
        return
    is_theirs = include_path is not None and file.is_relative_to(Path(include_path).resolve())
    task = settings(file)
    kwargs = task.get("dataset_kwargs")
    asked = isinstance(kwargs, Mapping) and kwargs.get("trust_remote_code")
    if not is_theirs and not asked:
        return
    if "class" not in task:  # a class decides by itself
        split_of_training(task, name)
    what = file if is_theirs else f"the dataset of {file}"
    raise UntrustedCodeError(
        f"data: task {name} comes with code, from {what}: to load it runs its functions, templates "
        "and metrics. If you trust it, pass --trust-remote-code (trust_remote_code=True)"
    )


def _file(manager: Any, name: str) -> Path | None:
    """Find the file of a task in lm-eval's index."""
    entry = manager.task_index[name]
    file = entry["yaml_path"] if isinstance(entry, Mapping) else entry.yaml_path
    return Path(file).resolve() if isinstance(file, str | Path) else None


def _managers(name: str, include_path: str | None) -> Iterator[Any]:
    """Yield a manager of the user's own tasks, then one of lm-eval's too, which takes seconds."""
    if find_spec("lm_eval") is None:
        raise DataError(f"data: task:{name} needs lm-eval: {to_install('lm-eval')}")
    if include_path is not None:
        yield _manager(include_path, include_defaults=False)
    yield _manager(include_path, include_defaults=True)


@functools.cache
def _manager(include_path: str | None, *, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=include_defaults)


def _loaded(name: str, manager: Any) -> Any:
    if hasattr(manager, "load"):
        return manager.load(name)["tasks"][name]
    return manager.load_task_or_group(name)[name]  # before lm-eval 0.4.10


class Docs(Sequence[Example]):
    """Training documents of a task, each formatted as an `Example` on access."""

    def __init__(self, task: Any) -> None:
        self._task = task
        docs = task.training_docs()
        self._docs = docs if hasattr(docs, "__len__") else list(docs)

    def __len__(self) -> int:
        return len(self._docs)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._example(self._docs[index])

    def _example(self, doc: Any) -> Example:
        task = self._task
        text, target = task.doc_to_text(doc), task.doc_to_target(doc)
        target = target[0] if isinstance(target, list) else target  # several correct answers
        label = None
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(doc)
            if isinstance(text, int):  # the choices come before what is scored, as in Winogrande
                text = choices[text]
            elif isinstance(target, int):
                label, target = target, choices[target]
            elif target in choices:
                label = choices.index(target)
        if not text:  # a text to be scored as a whole
            return Example(str(target), "", label)
        delimiter = getattr(task.config, "target_delimiter", " ")
        return Example(str(text), f"{delimiter}{target}", label)


class Rows(Docs):
    """Training documents of a task, each as a classifier reads it."""

    def __init__(self, task: Any, columns: Sequence[str]) -> None:
        super().__init__(task)
        self._columns = columns

    def _example(self, doc: Any) -> Example:
        texts, label = texts_of(doc, self._columns, self._task.config.task), doc.get("label")
        second = texts[1] if len(texts) > 1 else ""
        return Example(texts[0], second, label if isinstance(label, int | float) else None)
