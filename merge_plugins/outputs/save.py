"""Write a merge as an ordinary checkpoint, to publish it.

Tensors go to disk one at a time as they are merged. The folder appears under its name only when it
is complete; a run that fails or is interrupted leaves nothing behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from tqdm.auto import tqdm

from merge_plugins.engine import Cost, Merge, MergedTensor, announce, open_merge
from merge_plugins.folders import complete_or_nothing, naming_file, new_folder
from merge_plugins.outputs.card import model_card, portable
from merge_plugins.outputs.fits import fits
from merge_plugins.outputs.model_files import copy_companions, write_configs
from merge_plugins.outputs.scores import Score
from merge_plugins.recipe import Recipe, files, refuse_no_recipe
from merge_plugins.weights.modules import WEIGHTS, of_modules, of_transformer
from merge_plugins.weights.stored import write_header


def save(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    extra: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
    scores: Sequence[Score] = (),
) -> Path:
    """Write the merge with tokenizer, generation config, recipe and model card; return the folder.

    ``extra``: texts of further files, by their path in the folder. ``trust_remote_code``: whether
    code that came with a task of the recipe runs; that of the models is copied, and never runs.
    ``name``: what the card calls the model, by default the folder. ``scores``: those on the card,
    see `merge_plugins.outputs.scores.scores_of`.

    Raises `MergeError` when the folder is not empty or the disk is too small, before merging.
    """
    refuse_no_recipe(recipe)
    target = new_folder(folder)
    recipe = recipe.trusting() if trust_remote_code else recipe
    plan = open_merge(recipe).plan
    plan.refuse_routing("checkpoint")
    fits(plan)
    with complete_or_nothing(target, plan.bytes_merged) as unfinished:
        write_configs(recipe, plan.config, unfinished)
        copy_companions(plan, unfinished)  # what cannot be copied stops the merge before it starts
        merge = Merge(plan)
        announce(merge, Cost(plan, is_kept=False), timed=False)  # the bar says how long
        _write_weights(merge, unfinished, max_shard_size)
        write_modules(merge, unfinished)
        for name, text in (extra or {}).items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text, encoding="utf-8")
        (unfinished / files.NAME).write_text(portable(recipe, target), encoding="utf-8")
        card = model_card(plan, name or target.name, merge.settled(), scores)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        plan.refuse_changes()  # after the card, which has the digest
    return target


def _write_weights(merge: Merge, folder: Path, max_shard_size: int | str) -> None:
    tensors = of_transformer(merge.tensors())
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.numel() * tensor.dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    with tqdm(total=merge.plan.bytes_merged, unit="B", unit_scale=True, desc="Merging") as progress:
        for file, names in split.filename_to_tensors.items():
            _write_shard(folder / file, {name: tensors[name] for name in names}, progress)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def write_modules(merge: Merge, folder: Path) -> None:
    """Write the weights of a sentence-transformers model's modules, each into its own folder."""
    by_folder: dict[str, dict[str, MergedTensor]] = {}
    for name, tensor in of_modules(merge.tensors()).items():
        path, _, own = name.rpartition("/")
        by_folder.setdefault(path, {})[own] = tensor
    for path, tensors in by_folder.items():
        if (folder / path).is_dir():  # else the recipe follows a model without this module
            _write_shard(folder / path / WEIGHTS[0], tensors)


def _write_shard(
    file: Path, tensors: Mapping[str, MergedTensor], progress: tqdm[Any] | None = None
) -> None:
    """Write one safetensors file, merging tensors one by one after the header."""
    named = sorted(
        tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])
    )  # keeps each aligned to its dtype
    with naming_file(file), file.open("wb") as handle:
        handle.write(write_header((name, t.dtype, t.shape) for name, t in named))
        for _, tensor in named:
            raw = tensor[...].contiguous().reshape(-1).view(torch.uint8)
            handle.write(raw.numpy().data)
            if progress is not None:
                progress.update(raw.numel())
        handle.flush()
        os.fsync(handle.fileno())
