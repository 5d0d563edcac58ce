"""Read every model of a merge under one model's names, whatever layout its files have.

Two checkpoints of one architecture may spell and cut the same weights differently, yet transformers
loads both. `one_layout` reads all sources as the donor's files would hold them: a rename, or a view
of boxes of the source's own weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from merge_plugins.errors import MergeWarning, MismatchError
from merge_plugins.hf.rehearsal import Rehearsal, rehearse_stored
from merge_plugins.sources import ComputedCheckpoint, Source
from merge_plugins.weights import SourceTensor
from merge_plugins.weights.pieces import Pieces, arranged, inverted

Key = TypeVar("Key", bound=Hashable)


class View(NamedTuple):
    """A model read in the layout of another."""

    source: Source
    only_there: frozenset[str]
    """Weights of the other that this model has no counterpart of, and needs none."""
    left_out: tuple[str, ...]
    """Weights of this model that its class does not use and the other does not have."""


def rehearsed(source: Source) -> Rehearsal | None:
    """Rehearse loading a model with the class its config names; None where that tells nothing."""
    if source.path.is_file():
        return None
    shapes = {name: tensor.shape for name, tensor in source.items()}
    found = rehearse_stored(source.config, source.path / "config.json", shapes)
    return None if found is None or found.errors or found.mismatched else found


def in_layout_of(donor: Source, source: Source, theirs: Rehearsal | None = None) -> View | None:
    """Read a model under the names and in the shapes of another; None if one cannot be rehearsed.

    ``theirs``: the rehearsal of the donor, if it was made before. Raises `MismatchError` where the
    two store one weight in layouts that cannot be brought together.
    """
    donors = theirs or rehearsed(donor)
    own = rehearsed(source) if donors is not None else None
    if donors is None or own is None:
        return None
    part = _common_part(own.model, donors.model)
    tensors, used = _counterparts(donor, donors, source, own, part)
    left_out = []
    for name, tensor in source.items():
        if name in used or _repeats(name, source, own, used):
            continue
        if name in own.ignored or _is_made_anew(name, own, donors, part):
            left_out.append(name)
        else:
            tensors.setdefault(name, tensor)  # an error later, which names it
    reached = {part[name] for name in own.shapes if name in part}
    back = {there: name for name, there in part.items()}
    needless = {
        name
        for name in donor
        if name not in tensors
        and (_is_needless(name, donors, reached) or _is_made_anew(name, donors, own, back))
    }
    view = ComputedCheckpoint(source.ref, source.path, source.config, tensors)
    return View(view, frozenset(needless), tuple(left_out))


def _counterparts(
    donor: Source, donors: Rehearsal, source: Source, own: Rehearsal, part: Mapping[str, str]
) -> tuple[dict[str, SourceTensor], set[str]]:
    """Find what of a model each stored weight of the donor is; also list which of its are used."""
    others: dict[str, Pieces] = {}
    tensors: dict[str, SourceTensor] = {}
    used: set[str] = set()
    for name, pieces in own.live.items():
        wanted = donors.live.get(part.get(name, ""), ())
        if not wanted:
            continue
        if own.shapes[name] == donors.shapes[part[name]]:
            others[part[name]] = pieces
        elif len(pieces) == len(wanted) == 1:  # of another vocabulary, which is told later
            tensors[wanted[0].source] = source[pieces[0].source]
            used.add(pieces[0].source)
        else:
            raise MismatchError(
                f"{name} is {list(own.shapes[name])} in {source.ref} but "
                f"{list(donors.shapes[part[name]])} in {donor.ref}; models to merge have equal "
                "shapes"
            )
    once: dict[Pieces, str] = {}
    for name, pieces in donors.live.items():
        if name in others:
            once.setdefault(pieces, name)  # a tied weight has several names
    plans = inverted({name: pieces for pieces, name in once.items()}, others)
    for name in donor:
        pieces = plans.get(name, ()) if name not in tensors else ()
        made = arranged(name, donor[name].shape, pieces, source) if pieces else None
        if made is not None:
            tensors[name] = made
            used.update(piece.source for piece in pieces)
    for name in own.shapes:
        stored = own.computed.get(name, frozenset())
        if stored != donors.computed.get(part.get(name, ""), frozenset()):
            raise MismatchError(
                f"{source.ref} and {donor.ref} are stored in different layouts, and transformers "
                f"computes {name} in a way that we cannot follow box by box. Load one of them with "
                "transformers and save it with save_pretrained"
            )
        tensors |= {each: source[each] for each in sorted(stored)}
        used |= stored
    return tensors, used


def one_layout(
    sources: Mapping[Key, Source], donor: Key
) -> tuple[dict[Key, Source], frozenset[str]]:
    """Read all models in the donor's layout.

    Also returns the donor's weights that other models lack and need not have, because their class
    does not use them or because they are a part of the donor alone, such as the vision tower above
    a text model. Warns of these, and of weights that the donor lacks.
    """
    first, found, needless = sources[donor], dict(sources), frozenset[str]()
    theirs = rehearsed(first)
    for key, source in sources.items():
        alike = source.keys() == first.keys()
        view = None if alike or theirs is None else in_layout_of(first, source, theirs)
        if view is None:
            continue
        found[key] = view.source
        only_there = view.only_there - needless
        if only_there:
            _warn(
                f"{_count(only_there)} copied from {first.ref}, not merged, because {source.ref} "
                f"has none: {min(only_there)}{_more(only_there)}"
            )
        if view.left_out:
            _warn(
                f"{_count(view.left_out)} of {source.ref} left out of the merge: "
                f"{view.left_out[0]}{_more(view.left_out)}. The model's class needs none, "
                f"and {first.ref} does not have them"
            )
        needless |= view.only_there
    return found, needless


def without_ignored(source: Source) -> Source:
    """Leave out weights that a model's class does not use, such as those of prediction heads."""
    found = rehearsed(source)
    if found is None or not found.ignored:
        return source
    kept = {name: tensor for name, tensor in source.items() if name not in found.ignored}
    _warn(
        f"{_count(found.ignored)} of {source.ref} left out of the stack, because the model's class "
        f"does not use them: {min(found.ignored)}{_more(found.ignored)}"
    )
    return ComputedCheckpoint(source.ref, source.path, source.config, kept)


def _warn(message: str) -> None:
    warnings.warn(message, MergeWarning, stacklevel=4)


def _more(names: Collection[str]) -> str:
    return ", …" if len(names) > 1 else ""


def _count(names: Collection[str]) -> str:
    return f"{len(names)} weight{'s' * (len(names) > 1)}"


def _is_needless(name: str, donors: Rehearsal, reached: set[str]) -> bool:
    """Whether a stored weight is in no part of the donor that the other model has."""
    if name in donors.ignored:
        return True
    homes = {live for live, pieces in donors.live.items() if any(p.source == name for p in pieces)}
    return bool(homes) and not homes & reached and _is_larger(donors, reached)


def _is_made_anew(name: str, stored: Rehearsal, other: Rehearsal, part: Mapping[str, str]) -> bool:
    """Whether a weight that one model stores is one that the other's class makes if absent."""
    homes = [
        part.get(live)
        for live, pieces in stored.live.items()
        if any(piece.source == name for piece in pieces)
    ]
    return bool(homes) and all(
        home in other.shapes and home not in other.live and home not in other.missing
        for home in homes
    )


def _is_larger(donors: Rehearsal, reached: set[str]) -> bool:
    """Whether the other model is a part of the donor, and no other head on the same body."""
    base = donors.model.base_model_prefix
    body = {name for name in donors.shapes if not base or name.startswith(f"{base}.")}
    return not body <= reached


def _repeats(name: str, source: Source, own: Rehearsal, used: set[str]) -> bool:
    """Whether a stored weight repeats one it is tied to, or raise `MismatchError` if it differs."""
    twins = {**own.ties, **{there: here for here, there in own.ties.items()}}
    for live, pieces in own.live.items():
        if [piece.source for piece in pieces] != [name] or live not in twins:
            continue
        for other in own.live.get(twins[live], ()):
            if other.source not in used:
                continue
            if source[other.source].shape == source[name].shape and torch.equal(
                source[other.source].view(), source[name].view()
            ):
                return True
            raise MismatchError(
                f"{source.ref} stores {name} and {other.source}, which its config ties, with "
                "different values. Set tie_word_embeddings to false in its config.json, or remove "
                f"{name} from its files"
            )
    return False


def _common_part(own: Any, donor: Any) -> dict[str, str]:
    """Match the weights of two models: equal classes, equal bodies, or a body within the other."""
    mine, theirs = own.state_dict().keys(), donor.state_dict().keys()
    if type(own) is type(donor):
        return {name: name for name in mine}
    base = own.base_model_prefix
    body = [name.removeprefix(f"{base}.") for name in mine if name.startswith(f"{base}.")]
    inside = bool(body) and own.base_model is not own
    body = body if inside else [*mine]
    heads = {name: name for name in mine if inside and not name.startswith(f"{base}.")}
    first = max(body, key=len)
    starts = {name[: -len(first)] for name in theirs if name == first or name.endswith(f".{first}")}
    for start in sorted(starts, key=len):
        if all(start + name in theirs for name in body):
            prefix = f"{base}." if inside else ""
            return {**heads, **{prefix + name: start + name for name in body}}
    return heads
