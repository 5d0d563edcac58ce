"""Count the layers of a model from local config files, without a download."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

from merge_plugins.recipe.parts import REST, WHOLE
from merge_plugins.recipe.references import Delta, Lora, Nested, Rebased, Reference, home
from merge_plugins.recipe.slices import Entry, Slice, is_stack
from merge_plugins.weights.files import read_json, text_config

DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Config keys that hold the number of layers, by model family."""
KINDS = "layers_block_type"
"""Key of a list of kinds of layers, whose length is the depth where no key holds the number."""


class _InParts(Nested, Protocol):
    """Protocol of a `Recipe`; recipe.py imports this module, so the class cannot be named here."""

    @property
    def parts(self) -> Mapping[str, tuple[Slice, ...]]:
        """Slices by part of the model."""


def depth_key(config: Mapping[str, Any], keys: Sequence[str] | None = None) -> str | None:
    """Find the config key that holds the number of layers, among ``keys`` or the usual ones."""
    return next((key for key in keys or DEPTH if isinstance(config.get(key), int)), None)


def depth(ref: Reference) -> int | None:
    """Count a model's layers from local files; None if no config states the number."""
    if not isinstance(ref, str | Lora | Delta | Rebased):
        parts = cast(_InParts, ref).parts
        slices = next((parts[part] for part in (WHOLE, *REST) if part in parts), ())
        if not slices or not is_stack(slices):
            return depth(ref.donor)
        lengths = [n_layers(slice_.inputs) for slice_ in slices]
        return None if None in lengths else sum(length or 0 for length in lengths)
    config = text_config(_config(home(ref)))
    key = depth_key(config)
    if key is None and isinstance(config.get(KINDS), list):
        return len(config[KINDS])
    return config[key] if key else None


def n_layers(models: Iterable[Entry]) -> int | None:
    """Count the layers that each entry of a slice gives, by the first whose count is known."""
    for model in models:
        n = depth(model.ref) if model.layers is None else model.layers[1] - model.layers[0]
        if n is not None:
            return n
    return None


def is_whole(model: Entry) -> bool:
    """Check that an entry takes all layers; a range of a model of unknown depth does not."""
    return model.layers is None or model.layers == (0, depth(model.ref))


def _config(ref: str) -> Mapping[str, Any]:
    """Read a stored model's config from its folder or the hub's cache; empty if in neither."""
    file = Path(ref) / "config.json"
    if not file.is_file() and not Path(ref).is_absolute():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        repo, _, revision = ref.partition("@")
        with suppress(HFValidationError):  # opening the model says that it is none
            cached = try_to_load_from_cache(repo, "config.json", revision=revision or None)
            file = Path(cached) if isinstance(cached, str) else file
    return read_json(file) if file.is_file() else {}
