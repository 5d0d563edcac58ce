"""Calibration statistics on disk: computed once per model and data, shared by every merge of it.

A statistic is a folder ``statistics/<name>-<key>`` in `merge_plugins.folders.cache_folder`, with
safetensors files and an index; the key is a hash of everything that it depends on. The folder
appears under its name when it is complete; one that cannot be read is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from merge_plugins.api import Batch
from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.folders import cache_folder, complete_or_nothing
from merge_plugins.identity import model_identity, tokenizer_identity
from merge_plugins.notice import tell
from merge_plugins.plugins import registry
from merge_plugins.plugins.method import RegisteredStatistic
from merge_plugins.recipe import Data
from merge_plugins.weights import StoredTensor
from merge_plugins.weights.files import read_json
from merge_plugins.weights.headers import read_header

INDEX = "index.json"


logger = logging.getLogger(__name__)


Stored = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class StatisticRequest:
    """Identify one statistic of one model on some data."""

    name: str
    model: Any
    """The model's reference."""
    tokenizer: str
    """The folder of the tokenizer that reads the data."""
    data: Data
    layout: str = ""
    """Hash of the weights' names, for a model that is read in the layout of another."""

    @property
    def registered(self) -> RegisteredStatistic:
        """The plugin's entry for this statistic, or `RecipeError` if there is none."""
        known = registry().statistics
        if self.name not in known:
            raise RecipeError(f"no plugin registers a statistic {self.name!r}")
        return known[self.name]

    @property
    def folder(self) -> Path:
        """The cache folder of this statistic, named by a hash of everything it depends on."""
        from merge_plugins._version import __version__

        found = self.registered
        parts = [
            self.name,
            found.known_as,
            found.version or __version__,
            model_identity(self.model),
        ]
        parts += [tokenizer_identity(self.tokenizer), self.data.digest]
        parts += [self.layout] if self.layout else []
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return cache_folder() / "statistics" / f"{self.name}-{key}"


def read(folder: Path) -> Stored | None:
    """Open a statistic, memory-mapped, by weight name; None if it is absent or damaged."""
    if not folder.is_dir():
        return None
    try:
        index = read_json(folder / INDEX)
        files = {name: read_header(folder / name) for name in {file for file, _ in index.values()}}
        return {weight: files[file][tensor] for weight, (file, tensor) in index.items()}
    except (OSError, KeyError, TypeError, ValueError) as exc:
        logger.warning("%s is damaged and will be made again: %s", folder, exc)
        return None


def write(folder: Path, pieces: Iterable[Mapping[str, Tensor]]) -> Stored:
    """Write a statistic piece by piece, publish it whole and open it again, memory-mapped."""
    index: dict[str, tuple[str, str]] = {}
    with complete_or_nothing(folder, shared=True) as unfinished:
        for number, piece in enumerate(pieces):
            file, distinct = f"{number:05}.safetensors", dict[int, str]()
            for weight, tensor in piece.items():  # one tensor may stand for several weights
                index[weight] = file, distinct.setdefault(id(tensor), weight)
            tensors = {weight: piece[weight].detach() for weight in distinct.values()}
            tensors = {k: t.float().cpu().contiguous() for k, t in tensors.items()}
            _save(tensors, unfinished / file)
        (unfinished / INDEX).write_text(json.dumps(index), encoding="utf-8")
        if read(folder) is None:  # damaged; a whole one, of a faster process, stays
            shutil.rmtree(folder, ignore_errors=True)
    written = read(folder)
    if written is None:
        raise MergeError(f"{folder} was written and cannot be read")
    return written


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write one file of a statistic; raise `OSError` with its name where the disk is full."""
    try:
        save_file(tensors, file)
    except SafetensorError as exc:  # not an OSError, whatever the system said
        raise OSError(f"{file}: {exc}") from exc


def announce(request: StatisticRequest, n_elements: int) -> None:
    """Tell which statistic is about to be computed and its cost, above the progress bars."""
    n, name = len(request.data.examples()), request.registered
    size = 4 * n_elements / 1e9
    tell(
        f"{request.name} of {request.model} on {n} examples of {request.data.source}. "
        f"{name.summary} One model at a time, {size:.2g} GB in float32. Kept in {request.folder}."
    )


class Watched(Iterable[Batch]):
    """Iterate over batches, each time with a progress bar."""

    def __init__(self, walk: Callable[[], Iterator[Batch]], request: StatisticRequest) -> None:
        self._walk, self._request = walk, request

    def __iter__(self) -> Iterator[Batch]:
        data = self._request.data
        total = math.ceil(len(data.examples()) / data.batch_size)
        doing = f"{self._request.name} of {Path(str(self._request.model)).name}"
        with tqdm(self._walk(), desc=doing, total=total, unit="batch", leave=False) as shown:
            yield from shown


def checked(
    pieces: Iterable[Mapping[str, Tensor]], request: StatisticRequest
) -> Iterator[Mapping[str, Tensor]]:
    """Yield the pieces of a statistic; raise `MergeError` at NaN or infinity."""
    for piece in pieces:
        for name, tensor in piece.items():
            if not torch.isfinite(tensor).all():
                raise MergeError(
                    f"{request.name} of {request.model}: {name} came out as NaN or infinity; "
                    "check the model and its data"
                )
        yield piece
