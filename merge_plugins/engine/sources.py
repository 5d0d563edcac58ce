"""Weights, live models, examples and statistics of a plan, opened as a method asks for them."""

from __future__ import annotations

import gc
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from merge_plugins.api import Batch, Example, Pooling, Weight
from merge_plugins.calibration import store
from merge_plugins.calibration.batches import batches
from merge_plugins.errors import RecipeError
from merge_plugins.planning import Plan
from merge_plugins.planning.embedding import pooling_of
from merge_plugins.plugins import registry
from merge_plugins.recipe import Data, Reference
from merge_plugins.sources import Source
from merge_plugins.tokenizer import tokenizer_folder
from merge_plugins.tokenizer.vocabulary import is_vocabulary
from merge_plugins.weights import Checkpoint, SourceTensor
from merge_plugins.weights.files import tokenizer_files

T = TypeVar("T")


class PlannedSources:
    """The engine's `merge_plugins.api.Sources`: at most one live model is in memory."""

    def __init__(self, plan: Plan, slots: Callable[[], Iterator[Weight]]) -> None:
        self._plan, self.slots = plan, slots
        self._experts = plan.recipe.models
        self.names, self.seed = tuple(str(model.ref) for model in self._experts), plan.recipe.seed
        self.device: torch.device | None = None  # that the merge goes to, if not the CPU alone
        self._live: tuple[int, Any] | None = None
        self._lock = threading.RLock()
        self.stored = cache(self._stored)

    def module(self, expert: int) -> nn.Module:
        """Load an expert: float32, in evaluation mode. Loading another drops the last."""
        with self._lock:
            if self._live is None or self._live[0] != expert:
                from merge_plugins.hf.experts import load  # seconds: imports transformers

                self.drop()
                self._live = expert, load(self._checkpoint(expert), self.device)
            return self._live[1]

    def drop(self) -> None:
        """Drop the live model."""
        if self._live is not None:
            self._live = None
            gc.collect()  # modules refer to themselves

    def tokenizer(self, expert: int) -> Any:
        """Load an expert's own tokenizer, or the merge's if it has none."""
        from merge_plugins.hf.experts import load_tokenizer

        return load_tokenizer(self._tokenizer(expert))

    def pooling(self) -> Pooling:
        """Find how the models embed a text, or raise an error that shows how to say it."""
        return pooling_of(self._plan.embedding)

    def examples(self, expert: int) -> tuple[Example, ...]:
        """Read an expert's calibration data, or raise an error that shows how to name it."""
        return self._data(expert).examples()

    def batches(self, expert: int) -> Iterator[Batch]:
        """Tokenise an expert's examples, on the device of the live model."""
        from merge_plugins.hf.experts import is_classifier

        live = self._live[1] if self._live else self.module(expert)
        device = next(live.parameters()).device
        classifier, tokenizer = is_classifier(self._checkpoint(expert)), self.tokenizer(expert)
        data = self._data(expert)
        if tokenizer.model_max_length < data.max_length:
            data = replace(data, max_length=tokenizer.model_max_length)
        for batch in batches(tokenizer, data.examples(), data, classifier=classifier):
            yield {key: tensor.to(device) for key, tensor in batch.items()}

    def of_weight(self, name: str, expert: int, weight: str) -> SourceTensor | None:
        """Find a weight's statistic, its rows in the merge's order; None if the model has none."""
        found = self.stored(name, expert).get(weight)
        plan = self._plan
        if found is None or plan.alignment is None or not registry().statistics[name].elementwise:
            return found
        shape = plan.donor[weight].shape
        if not is_vocabulary(weight, shape, plan.donor.config):
            return found
        aligned = plan.alignment.of_statistic(self._experts[expert].ref, found)
        aligned.hold()  # for good: a row at most
        return aligned

    def stat(self, name: str, expert: int) -> Mapping[str, Tensor]:
        """Load or compute a statistic of an expert, by checkpoint name; float32, memory-mapped."""
        return {key: stored.view() for key, stored in self.stored(name, expert).items()}

    def _stored(self, name: str, expert: int) -> store.Stored:
        """Load or compute one statistic of one expert; tensors are not read yet."""
        with self._lock:  # the first of several threads computes it
            model, data = self._experts[expert], self._data(expert)
            layout = names_digest(self._checkpoint(expert), model.ref)
            tokenizer = str(self._tokenizer(expert))
            request = store.StatisticRequest(name, model.ref, tokenizer, data, layout)
            return store.read(request.folder) or self._compute(request, expert)

    def _compute(self, request: store.StatisticRequest, expert: int) -> store.Stored:
        from merge_plugins.hf.experts import by_checkpoint_name

        checkpoint, statistic = self._checkpoint(expert), request.registered
        store.announce(request, sum(math.prod(stored.shape) for stored in checkpoint.values()))
        try:
            module: Any = self.module(expert)
            watched = store.Watched(lambda: self.batches(expert), request)
            pieces = store.checked(statistic.function(module, watched), request)
            renamed = (by_checkpoint_name(module, p, checkpoint, statistic) for p in pieces)
            return store.write(request.folder, self._of_one_version(renamed))
        finally:
            self.drop()

    def _of_one_version(self, pieces: Iterator[T]) -> Iterator[T]:
        """Yield pieces of a statistic; raise `CheckpointError` if a model changed meanwhile."""
        yield from pieces
        self._plan.refuse_changes()

    def _tokenizer(self, expert: int) -> Path:
        """Return the folder of the tokenizer for an expert's data."""
        own = tokenizer_folder(self._experts[expert].ref)
        return own if tokenizer_files(own) else tokenizer_folder(self._plan.recipe)

    def _data(self, expert: int) -> Data:
        model = self._experts[expert]
        data = self._plan.recipe.data_of(model)
        if data is None:
            raise RecipeError(
                f"{self._plan.method.name}: needs calibration data for {model.ref}; "
                "add data: <texts.jsonl>"
            )
        return data

    def _checkpoint(self, expert: int) -> Source:
        return self._plan.checkpoints[self._experts[expert].ref]


def names_digest(source: Source, ref: Reference) -> str:
    """Hash the names under which a stored model is read, if they are not those of its files."""
    if isinstance(source, Checkpoint) or not isinstance(ref, str):
        return ""
    return hashlib.sha256("\n".join(source).encode()).hexdigest()[:16]
