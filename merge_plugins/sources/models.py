"""Open models: mappings from tensor name to lazy weight, stored or computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from merge_plugins.errors import RecipeError
from merge_plugins.recipe import Reference
from merge_plugins.recipe.references import home
from merge_plugins.weights import Checkpoint, SourceTensor
from merge_plugins.weights.files import text_config
from merge_plugins.weights.hub import resolve


def model_folder(ref: Reference) -> Path:
    """Find the local folder with a model's config and code, or raise `RecipeError`."""
    folder = resolve(home(ref))
    if folder.is_file():
        raise RecipeError(
            f"{folder} is a file of tensors without config.json, so no live model is built of "
            "them: 'merge-plugins save' writes their merge; or name a model folder as base_model:"
        )
    return folder


@dataclass(frozen=True, eq=False)
class ComputedCheckpoint(Mapping[str, SourceTensor]):
    """Map tensor names to weights, some computed; same interface as `Checkpoint`."""

    ref: Reference
    path: Path
    """The folder with the model's code and most of its configuration."""
    config: Mapping[str, Any]
    """Contents of the ``config.json`` that the computed model would have."""
    tensors: Mapping[str, SourceTensor]

    def __getitem__(self, name: str) -> SourceTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


Source: TypeAlias = Checkpoint | ComputedCheckpoint


def tied_to(name: str, shape: Sequence[int], source: Source) -> SourceTensor | None:
    """Find the embedding that a head of that name and shape is tied to; None if untied."""
    config = text_config(source.config)
    if not config.get("tie_word_embeddings") or tuple(shape[:1]) != (config.get("vocab_size"),):
        return None
    alike = [t for n, t in source.items() if t.shape == tuple(shape) and n != name]
    return alike[0] if len(alike) == 1 else None
