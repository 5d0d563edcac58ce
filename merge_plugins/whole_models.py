"""mergekit's slices and modules, as far as they mean whole models.

mergekit writes every recipe in this form beside its output (mergekit_config.yml), and its slerp
examples are written in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_plugins.checkpoint import read_json
from merge_plugins.errors import RecipeError
from merge_plugins.references import reference
from merge_plugins.settings import MISSING, Setting, over

ONLY_WHOLE = "not supported yet; write models: with whole models"


def whole_models(
    given: Mapping[str, Any], parameters: Mapping[str, Setting], folder: Path
) -> tuple[Sequence[Any], dict[str, Setting]]:
    """Return the entries of `models` and the parameters that mean the same."""
    modules = given.get("modules", {"default": {"slices": given.get("slices")}})
    module = _only("modules", list(modules.values()) if isinstance(modules, Mapping) else modules)
    _check_keys("a module", module, ("models", "slices", "parameters"))
    parameters = _layered(module.get("parameters"), parameters)
    if "models" in module:
        return module["models"], parameters
    piece = _only("slices", module.get("slices"))
    _check_keys("a slice", piece, ("sources", "parameters"))
    sources = piece.get("sources")
    if not isinstance(sources, Sequence) or not all(isinstance(s, Mapping) for s in sources):
        raise RecipeError(
            f"sources is a list of {{model, layer_range, parameters}}; got {sources!r}"
        )
    for source in sources:
        _check_depth(source, sources[0].get("layer_range"), folder)
    entries = [{k: v for k, v in source.items() if k != "layer_range"} for source in sources]
    return entries, _layered(piece.get("parameters"), parameters)


def _only(key: str, given: Any) -> Mapping[str, Any]:
    """Return the one item of a list of one mapping."""
    if not isinstance(given, Sequence) or not all(isinstance(item, Mapping) for item in given):
        raise RecipeError(f"{key} holds mappings; got {given!r}")
    if len(given) != 1:
        raise RecipeError(f"{key}: {len(given)} of them: {ONLY_WHOLE}")
    only: Mapping[str, Any] = given[0]
    return only


def _check_keys(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise RecipeError(f"{key} in {where}: {ONLY_WHOLE}")


def _check_depth(source: Mapping[str, Any], common: Any, folder: Path) -> None:
    """Refuse a source that is not all layers of its model, as far as files at hand can tell."""
    layers = source.get("layer_range")
    if layers != common:
        raise RecipeError(f"layer_range {layers} beside {common}: {ONLY_WHOLE}")
    if layers is None:
        return
    if not isinstance(layers, list) or len(layers) != 2 or layers[0] != 0:
        raise RecipeError(f"layer_range {layers}: parts of a model: {ONLY_WHOLE}")
    ref = reference(source.get("model"), folder)
    config = Path(ref, "config.json")
    held = read_json(config) if config.is_file() else {}
    depth = held.get("num_hidden_layers", held.get("n_layer", layers[1]))
    if layers[1] != depth:
        raise RecipeError(f"layer_range {layers} of {ref}, which has {depth} layers: {ONLY_WHOLE}")


def _layered(inner: Any, outer: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return two scopes as one: the inner is read first."""
    inner = {} if inner is None else inner
    if not isinstance(inner, Mapping):
        raise RecipeError(f"parameters is a mapping from name to value; got {inner!r}")
    return {
        name: over(inner.get(name, MISSING), outer.get(name, MISSING))
        for name in (*inner, *(name for name in outer if name not in inner))
    }
