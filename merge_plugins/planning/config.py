"""Build the config of a merge; of a stack of layers, with their number and kinds.

A layer keeps its kind wherever it goes. Kinds are in lists with an entry per layer (layer_types),
in lists of layers' numbers (mlp_only_layers), or follow from a rule in the model's code (every
sixth layer is global), which transformers evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from merge_plugins.errors import RecipeError
from merge_plugins.planning.names import Names
from merge_plugins.recipe import Recipe, Reference
from merge_plugins.recipe.depth import KINDS, depth_key
from merge_plugins.recipe.parts import WHOLE, section_and_keys
from merge_plugins.recipe.slices import is_stack
from merge_plugins.sources import Source
from merge_plugins.tokenizer import Alignment
from merge_plugins.tokenizer.vocabulary import with_vocabulary_size
from merge_plugins.weights.files import text_config


def merged_config(
    recipe: Recipe,
    checkpoints: Mapping[Reference, Source],
    names: Names,
    alignment: Alignment | None,
) -> dict[str, Any]:
    """Build the merge's ``config.json``: the donor's, with depth, vocabulary, dtype."""
    config = dict(names.donor.config)
    stacks = {part: slices for part, slices in recipe.parts.items() if is_stack(slices)}
    if stacks:
        kinds = {ref: with_kinds(source.config, source.path) for ref, source in checkpoints.items()}
        config = dict(kinds[recipe.donor])
        for part, slices in stacks.items():
            layers = [(kinds[ref], at) for ref, at in names.layers(slices)]
            config = with_depth(config, layers, part)
    if alignment is not None:
        config = with_vocabulary_size(config, len(alignment.rows))
        config = alignment.renumbered(config, recipe.donor)
    dtype = recipe.out_dtype or recipe.dtype
    if not dtype and "model_type" in config and not _says_dtype(config):
        dtype = unsaid_dtype(names.donor)
    if dtype and config:  # one key for transformers 5, one for those before 4.56
        config |= {"dtype": dtype, "torch_dtype": dtype}
    config.pop("transformers_weights", None)  # a file of the donor's
    return config


def unsaid_dtype(model: Source) -> str | None:
    """Find the dtype in which transformers loads a model whose config.json says none.

    It is that of the first weight of the first file, by name. None if all weights have the same, so
    that nothing needs saying.
    """
    floats = {t.dtype for t in model.values() if t.dtype.is_floating_point and t.dtype.itemsize > 1}
    if len(floats) < 2:
        return None
    file = min(tensor.file for tensor in model.values())
    own = [(name, tensor.dtype) for name, tensor in model.items() if tensor.file == file]
    ordered = sorted(own, key=lambda item: item[0]) if file.suffix == ".safetensors" else own
    return next(str(dtype).removeprefix("torch.") for _, dtype in ordered if dtype in floats)


def _says_dtype(config: Mapping[str, Any]) -> bool:
    return any(text_config(config).get(key) for key in ("dtype", "torch_dtype"))


Origins: TypeAlias = "Sequence[tuple[Mapping[str, Any], int]]"
"""Config of the model that each layer of a stack comes from, and the layer's number there."""
BY_NUMBER = "per_layer_config"
"""Key of settings by layer number."""
NO_KINDS = ("architectures", "_token_id", "_token_ids")
"""Endings of keys whose lists may be as long as a model has layers only by accident."""


def with_depth(config: Mapping[str, Any], layers: Origins, part: str = WHOLE) -> dict[str, Any]:
    """Rewrite a donor's config for a stack of these layers, in one part of the model."""
    section, keys = section_and_keys(part)
    if not section and depth_key(config, keys) is None and depth_key(_at(config, "text_config")):
        section = "text_config"
    if section:
        parts = [(_at(each, section) or each, layer) for each, layer in layers]
        return {**config, section: _with_depth(_at(config, section), parts, keys)}
    return _with_depth(config, layers, keys)


def _with_depth(
    config: Mapping[str, Any], layers: Origins, keys: Sequence[str] | None
) -> dict[str, Any]:
    key = depth_key(config, keys)
    if key is None and not keys and KINDS in config:
        kinds = [_of_layer(each, KINDS, layer, config[KINDS]) for each, layer in layers]
        return {**config, KINDS: kinds}
    if key is None and keys:
        raise RecipeError(f"the config has none of {', '.join(keys)}, so no depth can be changed")
    if key is None:
        return dict(config)
    found = dict(config)
    for name, value in config.items():
        if _is_per_layer(name, value, config[key]):
            found[name] = [_of_layer(each, name, layer, value) for each, layer in layers]
        elif _is_numbers(name, value, config[key]):
            found[name] = [
                i for i, (each, layer) in enumerate(layers) if layer in _list(each, name, value)
            ]
        elif name == BY_NUMBER and isinstance(value, Mapping):
            own = [_at(each, name).get(str(layer)) for each, layer in layers]
            found[name] = {str(i): kept for i, kept in enumerate(own) if kept is not None}
    if config.get("use_sliding_window") and "layer_types" not in config:
        found |= _windows(config, layers)
    return {**found, key: len(layers)}


def with_kinds(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Complete a config with the kinds of layers that follow from the model's code, if any."""
    key = depth_key(config)
    if key is None or "model_type" not in config:
        return config
    from merge_plugins.hf.rehearsal import config_of  # seconds: imports transformers

    live = config_of(config, folder / "config.json")
    whole = {} if live is None else live.to_dict()
    kinds = {name: v for name, v in whole.items() if _is_per_layer(name, v, config[key])}
    return {**kinds, **config}


def _at(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return a section of a config; empty if there is none."""
    found = config.get(section)
    return found if isinstance(found, Mapping) else {}


def _list(config: Mapping[str, Any], name: str, donors: Sequence[Any]) -> Sequence[Any]:
    """Return a list of a model's own config, else the donor's."""
    found = config.get(name)
    return found if isinstance(found, list) else donors


def _is_per_layer(name: str, value: Any, depth: int) -> bool:
    """Whether a key of a config has an entry for each layer."""
    is_list = isinstance(value, list) and len(value) == depth and not name.endswith(NO_KINDS)
    return is_list and not _is_numbers(name, value, depth)


def _is_numbers(name: str, value: Any, depth: int) -> bool:
    """Whether a key of a config lists some layers by number."""
    named = "layer" in name or "idx" in name
    if not named or not isinstance(value, list) or not all(type(n) is int for n in value):
        return False
    return all(0 <= n < depth for n in value) and value == sorted(set(value))


def _of_layer(config: Mapping[str, Any], name: str, layer: int, donors: Sequence[Any]) -> Any:
    """Look a layer's value up in its own model's config, else in the donor's list."""
    values = _list(config, name, donors)
    values = values if layer < len(values) else donors
    return values[layer] if layer < len(values) else values[-1]


def _windows(config: Mapping[str, Any], layers: Origins) -> dict[str, Any]:
    """Apply Qwen2's rule, full attention below max_window_layers, to layers in another order."""
    first = config.get("max_window_layers", 0)
    starts = [each.get("max_window_layers", first) for each, _ in layers]
    if not all(isinstance(start, int) for start in starts):
        return {}
    slides = [layer >= start for start, (_, layer) in zip(starts, layers, strict=True)]
    kinds = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return {"layer_types": kinds, "max_window_layers": slides.count(False)}
