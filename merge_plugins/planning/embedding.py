"""Decide how the merge of embedders embeds: as its models do, which must agree.

Weights merge whatever comes after the transformer, so a merge of models that pool differently, or
have other prompts, would silently be a third model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from merge_plugins.api import Pooling
from merge_plugins.errors import MismatchError, RecipeError
from merge_plugins.plugins import Method
from merge_plugins.recipe import Lora, Recipe, Reference
from merge_plugins.recipe.references import home, written
from merge_plugins.weights.hub import resolve
from merge_plugins.weights.modules import OWN, Module, in_module, weight_files_below
from merge_plugins.weights.sentence import (
    MODES,
    NORMALIZE,
    SentenceModel,
    sentence_files,
    sentence_model,
)

POOLS = ("Transformer", "Pooling", "Normalize")
"""Modules that have no weights of their own beside the transformer's."""


def embedding_of(recipe: Recipe, folders: Mapping[Reference, Path]) -> SentenceModel | None:
    """Find how the merge embeds; None, if its models do not say so and the recipe does not.

    ``folders``: the models' own, by reference. Raises `MismatchError` where models disagree.
    """
    given = recipe.pooling
    if given is not None and not isinstance(given, tuple):
        chosen = _of(given, folders)
        if chosen is None:
            raise RecipeError(
                f"pooling: {_name(given)} has no modules.json. Name a model that has one, or "
                f"modes: {', '.join(MODES)}"
            )
        return chosen
    found = [(ref, _of(ref, folders)) for ref in folders]
    known: list[tuple[Reference | None, SentenceModel]] = [
        (ref, model) for ref, model in found if model is not None
    ]
    if given is not None:
        known.append((None, pooled_by(given)))
    if not known:
        return None
    (first_ref, first), *others = known
    for ref, model in others:
        _check_same(first_ref, first, ref, model)
    return first


def known(model: SentenceModel | None) -> SentenceModel:
    """Return how a merge embeds, or raise `RecipeError` where neither models nor recipe say so."""
    if model is None:
        raise RecipeError(
            "no model of this merge has a modules.json that says how it embeds a text. Write "
            f"pooling: [mean, {NORMALIZE}], pooling: [cls, {NORMALIZE}] (LM-Cocktail, BGE) or "
            f'another of {", ".join(MODES)}; in Python, pooling=["cls", "{NORMALIZE}"]'
        )
    return model


def pooling_of(model: SentenceModel | None) -> Pooling:
    """Return how a merge pools, for a loss, or raise `RecipeError` where it does more than that."""
    model = known(model)
    rest = [module.kind for module in model.modules if module.kind not in POOLS]
    if rest or not model.pooling:
        raise RecipeError(
            f"the loss on examples pools states, and these models have {', '.join(rest)} too: "
            "give the weights yourself"
        )
    return Pooling(model.pooling, model.max_seq_length)


def check_modules(model: SentenceModel | None, names: Iterable[str], method: Method) -> None:
    """Raise `MergeError` for modules with weights that the merge cannot have.

    ``names``: the merge's tensors.
    """
    merged = {name.rpartition("/")[0]: name for name in names if in_module(name)}
    if merged and method.is_routed:
        raise RecipeError(
            f"{method.name} weighs experts inside a transformer, and {next(iter(merged.values()))} "
            "is of a module behind it; choose a method that is not routed"
        )
    for path in weight_files_below(model.folder) if model and model.folder else ():
        if path not in merged:
            assert model is not None
            raise MismatchError(
                f"{model.folder} has weights in {path} that are excluded, and the donor has none. "
                f"Write donor: {model.folder} to take them from there"
            )


def pooled_by(pooling: tuple[str, ...]) -> SentenceModel:
    """Build the sentence-transformers model that pools a transformer's states so."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    if NORMALIZE in pooling:
        kinds["2_Normalize"] = "Normalize"
    modules = tuple(Module(path, f"{OWN}models.{kind}") for path, kind in kinds.items())
    return SentenceModel(modules, {}, pooling, None)


def _of(ref: Reference, folders: Mapping[Reference, Path]) -> SentenceModel | None:
    """Read how one model embeds; an adapter may have been trained with a pooling of its own."""
    if isinstance(ref, Recipe):
        inner = {each: resolve(home(each)) for each in ref.references}
        return embedding_of(ref, inner)
    if isinstance(ref, Lora):
        own = _in(resolve(ref.adapter))
        return own if own is not None else _of(ref.model, {})
    return _in(folders.get(ref) or resolve(home(ref)))


def _in(folder: Path) -> SentenceModel | None:
    if folder.is_file():
        return None
    sentence_files(folder)  # raises where a module is not there
    return sentence_model(folder)


def _check_same(
    ref: Reference | None, model: SentenceModel, other_ref: Reference | None, other: SentenceModel
) -> None:
    """Raise `MismatchError` for models that would embed the same states differently."""
    if other_ref is None:
        if model.pooling != other.pooling:
            raise MismatchError(
                f"pooling: [{', '.join(other.pooling)}], but {_name(ref)} pools by "
                f"[{', '.join(model.pooling)}]. Delete pooling:, which is for models that do not "
                f"say it, or write pooling: {_name(ref)}"
            )
        return
    for key in {**model.settings, **other.settings}:
        ours, theirs = model.settings.get(key), other.settings.get(key)
        if ours != theirs:
            raise MismatchError(
                f"{_name(ref)} and {_name(other_ref)} embed differently: {key} is {_shown(ours)} "
                f"in the first and {_shown(theirs)} in the second. Write pooling: and the one that "
                "the merge shall follow, in this and all else that is beside the transformer"
            )


def _name(ref: Reference | None) -> str:
    return str(ref if isinstance(ref, str) or ref is None else written(ref))


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
