"""Refuse a merge that its model's class would not load as it is, before a weight is merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError, MismatchError
from merge_plugins.hf.classes import architecture
from merge_plugins.hf.rehearsal import Rehearsal, config_of, rehearse
from merge_plugins.hf.versions import LAZY
from merge_plugins.weights.spelling import NUMBER


def rehearse_merge(
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    folder: Path,
    model_class: Any = None,
    live_config: Any = None,
) -> Rehearsal | None:
    """Rehearse loading a merge, and raise `MergeError` for what its class would not load.

    ``config``: the merge's config.json. ``folder``: the donor's, for messages. By default the class
    is the one that the config names; None is returned if transformers has no code for it, or is
    older than 5.
    """
    if live_config is None:
        refuse_no_type(config, folder)
    if model_class is None:
        model_class = architecture(config.get("architectures") or ())
    if model_class is None or not model_class.__module__.startswith("transformers.") or not LAZY:
        return None
    live = config_of(config, folder / "config.json") if live_config is None else live_config
    found = None if live is None else rehearse(model_class, live, shapes)
    if found is not None:
        _refuse(found, model_class.__name__, folder)
    return found


def refuse_no_type(config: Mapping[str, Any], folder: Path) -> None:
    """Raise `CheckpointError` for a config that does not say of which type its model is."""
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{folder / 'config.json'} has no model_type, so transformers cannot load the merge; "
            "add it, as in the config.json of another model of this architecture"
        )


def _refuse(found: Rehearsal, name: str, folder: Path) -> None:
    file = folder / "config.json"
    if found.errors:
        raise MismatchError(f"{name} of {file} does not load these weights: {found.errors[0]}")
    if found.mismatched:
        weight, stored, wanted = found.mismatched[0]
        raise MismatchError(
            f"{weight} of the merge is {list(stored)}, but {file} makes it {list(wanted)} in "
            f"{name}{_more(found.mismatched)}. Correct the config to fit the weights"
        )
    if found.missing:
        first = found.missing[0]
        raise MismatchError(
            f"{name} needs {len(found.missing)} weights the merge does not have, first {first} "
            f"{list(found.shapes.get(first, ()))}; transformers would fill them with random "
            f"numbers. A file of the model may be lost, or {file} asks for more layers, other "
            "kinds of layers, or a head that the weights do not have"
        )
    layers = _layers_beyond(found)
    if layers:
        raise MismatchError(
            f"the merge has layers that {name} would drop, first {layers[0]}: {file} says there "
            "are fewer. Correct the number of layers in the config"
        )


def _layers_beyond(found: Rehearsal) -> list[str]:
    """List weights of whole layers that are stored but not in the model, for its depth is less.

    A layer with weights that no other has, as for the prediction of further tokens, is no such.
    """
    known = {NUMBER.sub("N", name) for name in found.shapes}
    layers: dict[str, list[str]] = {}
    for name in found.unexpected:
        number = NUMBER.search(name)
        if number:
            layers.setdefault(name[: number.end()], []).append(name)
    return [
        names[0]
        for names in layers.values()
        if all(NUMBER.sub("N", name) in known for name in names)
    ]


def _more(several: Sequence[object]) -> str:
    return f" ({len(several) - 1} more do not fit)" if len(several) > 1 else ""
