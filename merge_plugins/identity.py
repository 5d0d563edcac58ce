"""Identify a merge, a model or a tokenizer by content: every byte of every file counts.

Harnesses cache results by model name, so that name must contain the digest of the merge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from merge_plugins._version import __version__
from merge_plugins.errors import UntrustedCodeError
from merge_plugins.plugins import registry
from merge_plugins.recipe import Data, Delta, Lora, Rebased, Recipe, Reference, refuse_no_recipe
from merge_plugins.recipe.recipe import NONE
from merge_plugins.recipe.references import home
from merge_plugins.tokenizer import chat_template, generation_config, tokenizer_folder
from merge_plugins.weights import content
from merge_plugins.weights.files import adapter_files, tokenizer_files, weight_files
from merge_plugins.weights.hub import resolve
from merge_plugins.weights.modules import sentence_modules
from merge_plugins.weights.sentence import sentence_files

IDENTIFYING = ("config.json", "generation_config.json")
"""Files of a model folder that are hashed besides its weights."""

QUICK = 1 << 30
"""Bytes that are hashed in less than a second."""


def digest(recipe: Recipe) -> str:
    """Hash a recipe, its method's version and the content of every file it needs: 12 hex digits.

    Recipes of the same merge have one digest. Downloads missing files, and reads every weight file
    whose hash is not in the cache: a few seconds per 10 GB, once.
    """
    refuse_no_recipe(recipe)
    method = registry().get(recipe.merge_method)
    contents = {ref: model_identity(ref) for ref in recipe.references}  # downloads every file

    def write(value: Reference | Data) -> str:
        if isinstance(value, Data):
            return value.digest
        return contents.get(value) or model_identity(value)

    written = recipe.normal(method).written_with(write, str)
    readers = [tokenizer_folder(m.ref) for m in recipe.models if recipe.data_of(m)]
    if readers:
        written["readers"] = [tokenizer_identity(str(folder)) for folder in readers]
    if recipe.tokenizer:
        refs = (*recipe.references, recipe.tokenizer_donor)
        folders = map(tokenizer_folder, refs)
        written["vocabularies"] = [tokenizer_identity(str(folder)) for folder in folders]
        written |= recipe.tokenizer.as_keys(tokenizer_identity)
    if recipe.chat_template:
        written["chat_template"] = chat_template(recipe)
    if recipe.generation_config:
        written["generation_config"] = generation_config(recipe)
    if recipe.pooling or any(sentence_modules(resolve(home(ref))) for ref in recipe.references):
        written["embedder's tokenizer"] = tokenizer_identity(
            str(tokenizer_folder(recipe.tokenizer_donor))
        )
    if recipe.tasks:
        of_heads = (tokenizer_folder(recipe.for_task(task)) for task in recipe.tasks)
        written["tokenizers"] = [tokenizer_identity(str(folder)) for folder in of_heads]
    if recipe.exclude == (NONE,):
        del written["exclude"]  # the same merge
    written["plugin"] = [method.known_as, method.version or __version__]
    text = json.dumps(written, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def quick_digest(recipe: Recipe) -> str:
    """Return the `digest` of a merge, or "" if more than `QUICK` bytes had to be read for it.

    Also "" if that would run code that came along and is not trusted.
    """
    files = (file for ref in recipe.references for file in _files(ref))
    unknown = {file for file in files if file.is_file() and not content.is_known(file)}
    if sum(file.stat().st_size for file in unknown) > QUICK:
        return ""
    with suppress(UntrustedCodeError):
        return digest(recipe)
    return ""


def verify(recipe: Recipe) -> None:
    """Hash every file that `digest` needs again, also those whose hash is known.

    Takes as long as reading all models. Raises `CheckpointError` for a file in the hub's cache that
    is not what its name says.
    """
    for file in dict.fromkeys(_files(recipe)):
        if file.is_file():
            content.verify(file)


def _files(ref: Reference) -> Iterator[Path]:
    """Iterate over the files of a model, or of all models and the tokenizer of a merge."""
    if isinstance(ref, str):
        folder = resolve(ref)
        yield from (*_model_files(folder), *tokenizer_files(folder))
    elif isinstance(ref, Recipe):
        for each in ref.references:
            yield from _files(each)
        yield from tokenizer_files(tokenizer_folder(ref.tokenizer_donor))
    elif isinstance(ref, Lora):
        folder = resolve(ref.adapter)
        own = (*adapter_files(folder), *_embedding_files(folder), *tokenizer_files(folder))
        yield from (*_files(ref.model), *own)
    elif isinstance(ref, Delta | Rebased):
        other = ref.delta if isinstance(ref, Delta) else ref.base_model
        yield from (*_files(ref.model), *_files(other))


def _model_files(folder: Path) -> list[Path]:
    named = (folder / name for name in IDENTIFYING)
    return [*weight_files(folder), *named, *_embedding_files(folder)]


def _embedding_files(folder: Path) -> list[Path]:
    """List what changes the embeddings of a sentence-transformers model beside its transformer."""
    files = [folder / name for name in sentence_files(folder)]
    return [*files, *tokenizer_files(folder)] if files else []


def label(recipe: Recipe) -> str:
    """Name a merge for tables and caches: ``<method>-<digest>``."""
    return f"{recipe.merge_method}-{digest(recipe)}"


def model_identity(ref: Reference) -> str:
    """Hash the weights and configuration of a model, whatever its path: 32 hex digits.

    For a merge, return its digest: 12 hex digits. Files in the hub's cache are named by their hash;
    the hash of any other file is cached until the file changes.
    """
    if isinstance(ref, str):
        folder = resolve(ref)
        return _hashed(_model_files(folder), folder)
    parts: tuple[str, ...]
    if isinstance(ref, Lora):
        folder = resolve(ref.adapter)
        files = (*adapter_files(folder), *_embedding_files(folder))
        parts = "lora", model_identity(ref.model), _hashed(files, folder)
    elif isinstance(ref, Delta):
        parts = "delta", model_identity(ref.model), model_identity(ref.delta)
    elif isinstance(ref, Rebased):
        parts = "base_model", model_identity(ref.model), model_identity(ref.base_model)
    else:
        assert isinstance(ref, Recipe), "the only other kind of reference"
        return digest(ref)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def tokenizer_identity(ref: str) -> str:
    """Hash the tokenizer files of a folder or hub id: 32 hex digits."""
    folder = resolve(ref)
    return _hashed(tokenizer_files(folder), folder)


def _hashed(files: Iterable[Path], folder: Path) -> str:
    """Hash the content of files with their paths in a model's folder."""
    whole = hashlib.sha256()
    for file in files:
        if file.is_file():
            name = file.relative_to(folder).as_posix() if folder in file.parents else file.name
            whole.update(f"{name}={content.content(file)}\n".encode())
    return whole.hexdigest()[:32]
