"""Count the layers of a model from the config files at hand, without a download."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from merge_plugins.recipe.parts import REST, WHOLE
from merge_plugins.recipe.references import Delta, Lora, Nested, Rebased, Reference, home
from merge_plugins.recipe.slices import Entry, Slice, is_stack
from merge_plugins.weights.files import read_json

DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What families call the number of layers in their config."""


class _InParts(Nested, Protocol):
    """A recipe, which the modules above this one define."""

    @property
    def parts(self) -> Mapping[str, tuple[Slice, ...]]:
        """Slices by the part of the model they make."""


def depth_key(config: Mapping[str, Any], keys: Sequence[str] | None = None) -> str | None:
    """Return what a config calls its number of layers, of these names or of the usual ones."""
    return next((key for key in keys or DEPTH if isinstance(config.get(key), int)), None)


def depth(ref: Reference) -> int | None:
    """Return how many layers a model has, by the files at hand; None if they do not say."""
    if not isinstance(ref, str | Lora | Delta | Rebased):
        parts = cast(_InParts, ref).parts
        pieces = next((parts[part] for part in (WHOLE, *REST) if part in parts), ())
        if not pieces or not is_stack(pieces):
            return depth(ref.donor)
        lengths = [n_layers(piece.inputs) for piece in pieces]
        return None if None in lengths else sum(length or 0 for length in lengths)
    config = _config(home(ref))
    config = {**config.get("text_config", {}), **config}
    key = depth_key(config)
    return config[key] if key else None


def n_layers(models: Iterable[Entry]) -> int | None:
    """Return how many layers each of these models gives, by the first that says so."""
    for model in models:
        found = depth(model.ref) if model.layers is None else model.layers[1] - model.layers[0]
        if found is not None:
            return found
    return None


def is_whole(model: Entry) -> bool:
    """Whether all layers are taken, as far as the files at hand can tell."""
    return model.layers is None or model.layers == (0, depth(model.ref))


def _config(ref: str) -> Mapping[str, Any]:
    """Return a stored model's config without downloading anything; empty if it is not here."""
    file = Path(ref) / "config.json"
    if not file.is_file() and not Path(ref).is_absolute():
        from huggingface_hub import try_to_load_from_cache

        repo, _, revision = ref.partition("@")
        cached = try_to_load_from_cache(repo, "config.json", revision=revision or None)
        file = Path(cached) if isinstance(cached, str) else file
    return read_json(file) if file.is_file() else {}
