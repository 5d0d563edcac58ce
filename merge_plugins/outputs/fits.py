"""Check a planned merge against the class that will load it, before a weight is merged."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from merge_plugins.errors import MergeWarning, MismatchError
from merge_plugins.hf.fit import rehearse_merge
from merge_plugins.hf.rehearsal import Rehearsal
from merge_plugins.planning import Plan
from merge_plugins.tokenizer import tokenizer_folder
from merge_plugins.tokenizer.vocabulary import vocabulary_size
from merge_plugins.weights import held
from merge_plugins.weights.files import tokenizer_files
from merge_plugins.weights.modules import of_transformer


def fits(plan: Plan, model_class: Any = None, config: Any = None) -> Rehearsal | None:
    """Raise `MergeError` for a merge that its model's class would not load as it is.

    ``model_class`` and its live ``config``: by default those that the merge's config.json names.
    Returns what was seen, if its loading can be rehearsed. Merges of bare files of tensors, which
    no class loads, pass.
    """
    if plan.donor.path.is_file():
        return None
    shapes = {name: tensor.shape for name, tensor in of_transformer(plan.tensors).items()}
    found = rehearse_merge(plan.config, shapes, plan.donor.path, model_class, config)
    if found is not None:
        _refuse_two_heads(plan, found)
    return found


def has_tokenizer(plan: Plan) -> None:
    """Raise `MismatchError` for a merge without a tokenizer, if one of its models has one.

    Where none has, it may come from elsewhere: a warning.
    """
    folder = tokenizer_folder(plan.recipe)
    if tokenizer_files(folder) or vocabulary_size(plan.config) is None:
        return
    others = [ref for ref in plan.recipe.references if tokenizer_files(tokenizer_folder(ref))]
    message = f"{folder} has no tokenizer files. Copy them there, or name a model that has them: "
    if others:
        raise MismatchError(f"{message}tokenizer_source: {others[0]}")
    warnings.warn(f"{message}no model of the merge does", MergeWarning, stacklevel=2)


def _refuse_two_heads(plan: Plan, found: Rehearsal) -> None:
    """Refuse sources that store a weight twice, where one is tied to the other, with two values."""
    for pair in found.ties.items():
        stored = [found.live.get(name, ()) for name in pair]
        names = [pieces[0].source for pieces in stored if len(pieces) == 1]
        if len({*names}) < 2:
            continue
        first, second = (plan.tensors[name].stored for name in names)
        for one, other in zip(first, second, strict=False):
            with held([one, other]):
                if one.shape == other.shape and torch.equal(one.view(), other.view()):
                    continue
            raise MismatchError(
                f"{one.file} stores {names[0]} and {names[1]} with different values, but its "
                "config ties them, so only one of them is the model's. Set tie_word_embeddings to "
                "false in config.json, or remove one from the files"
            )
