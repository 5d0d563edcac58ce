"""Parse a recipe file, YAML or JSON, into mappings.

A YAML file may hold several documents, as in mergekit-multi. All but one need a ``name``, by which
any other document can use them as a model. The document without a name, or else the last one, is
the recipe of the file.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_plugins.errors import MergeWarning, NoModelError, RecipeError, did_you_mean_path
from merge_plugins.recipe.parsing import LONGEST, each_from_yaml, from_json

NAME = "merge.yaml"
"""File name of a recipe that this package writes to a folder."""
NAMES = (NAME, "mergekit_config.yml")
"""File names of a recipe in a folder, in order of precedence."""


def exists(text: str) -> bool:
    """Check whether there is a file or folder of that name, which may be too long for one."""
    return os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111  # Path raises


def is_short_form(text: str) -> bool:
    """Check whether a user's word is a recipe in one line, ``method=…,models=…``, and no file."""
    return "=" in text and not exists(text)


def path_of(text: str, folder: str | Path | None = None) -> Path:
    """Read a path as a user writes it, or raise `RecipeError` if no file can have that name.

    ``folder``: where a relative path starts, which becomes absolute; None: it stays as it is.
    """
    path = Path(text)
    with suppress(RuntimeError):  # no such user: a name like any other
        path = path.expanduser()
    if folder is not None:
        path = Path(os.path.normpath(Path.cwd() / folder / path))
    try:
        path.exists()
    except OSError as exc:
        raise RecipeError(f"{str(path)[:80]}…: {exc.strerror}. Check the path.") from exc
    return path


def find(path: Path) -> Path:
    """Find a recipe file; in a folder, merge.yaml or mergekit_config.yml."""
    if path.is_dir():
        files = [path / name for name in NAMES if (path / name).is_file()]
        if not files:
            is_model = (path / "config.json").is_file()
            hint = ": it is a model, which a recipe names under models:" if is_model else ""
            raise RecipeError(f"{path} holds no {' or '.join(NAMES)}{hint}")
        return files[0]
    if not path.is_file():
        raise RecipeError(f"no recipe file at {path}{did_you_mean_path(path)}")
    return path


@dataclass(frozen=True)
class Documents:
    """The parsed documents of a recipe file."""

    main: Mapping[str, Any]
    """The document that is the file's recipe."""
    named: Mapping[str, Mapping[str, Any]]
    """Documents with a name, which other documents can use as a model."""


def read(path: Path) -> Documents:
    """Parse a recipe file; warn about a named document that no other document uses."""
    documents = _documents(path)
    main = next((each for each in documents if "name" not in each), documents[-1])
    words = [{*_words(each)} for each in documents]
    users = Counter(itertools.chain.from_iterable(words))
    for each, own in zip(documents, words, strict=True):
        if each is not main and users[each["name"]] == (each["name"] in own):
            warnings.warn(
                f"{path}: document {each['name']!r} is not merged: no other uses it as a model",
                MergeWarning,
                stacklevel=3,
            )
    return Documents(main, {each["name"]: each for each in documents if "name" in each})


def _documents(path: Path) -> list[dict[str, Any]]:
    text = read_text(path)
    documents = [from_json(text)] if path.suffix == ".json" else list(each_from_yaml(text))
    for document in documents or [None]:
        if not isinstance(document, dict):
            raise RecipeError(
                f"a recipe is a mapping (merge_method: …, models: …); got {document!r:.80}"
            )
    names = [document["name"] for document in documents if "name" in document]
    taken = Counter(name for name in names if isinstance(name, str))
    for name in names:
        if not isinstance(name, str) or taken[name] > 1:
            raise RecipeError(f"each document needs a name of its own; got {name!r}")
    n_unnamed = len(documents) - len(names)
    if n_unnamed > 1:
        raise RecipeError(
            f"{n_unnamed} documents without name: only the last merge may have none; "
            "add name: <word> to the others"
        )
    return documents


def read_text(path: Path) -> str:
    """Read a file of text that is no longer than a recipe may be, or raise `RecipeError`."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(LONGEST + 1)  # one more is refused
    except UnicodeDecodeError as exc:
        raise RecipeError(f"a recipe is text; {exc}") from exc
    except OSError as exc:
        raise RecipeError(f"cannot be read: {exc.strerror}") from exc


def _words(value: Any) -> Iterator[str]:
    """Yield every string in a document, and the part of each before its first '+'."""
    if isinstance(value, str):
        yield from (value, value.partition("+")[0])
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from _words(item)


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Prefix every `RecipeError` raised in the block with the path of the recipe file, if any."""
    try:
        yield
    except (RecipeError, NoModelError) as exc:
        if path is None:
            raise
        raise type(exc)(f"{path}: {exc}") from exc
