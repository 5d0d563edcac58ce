"""`merge-plugins save`: the merge as a checkpoint, on the hub too if asked."""

from __future__ import annotations

import argparse

from merge_plugins import identity
from merge_plugins.commands.push import announce, upload
from merge_plugins.commands.recipe import recipe_of
from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError
from merge_plugins.outputs.publish import Saved, Target
from merge_plugins.outputs.save import save
from merge_plugins.outputs.scores import scores_of
from merge_plugins.recipe import Recipe


def save_merge(options: argparse.Namespace) -> int:
    """Write the merge as a checkpoint, with tokenizer, recipe and model card."""
    recipe = recipe_of(options)
    target = _target(recipe, options)
    scores = scores_of(options.results, identity.digest(recipe)) if options.results else ()
    size, name = options.max_shard_size, options.push
    folder = save(recipe, options.folder, max_shard_size=size, name=name, scores=scores)
    print(folder)
    if target is not None:
        upload(Saved.read(folder), target)
    return 0


def _target(recipe: Recipe, options: argparse.Namespace) -> Target | None:
    """Check where the merge will be uploaded to, and say it, before it is merged."""
    if options.push is None:
        for flag in ("private", "overwrite"):
            if getattr(options, flag):
                raise MergeError(f"--{flag} goes with --push org/name")
        return None
    plan = open_merge(recipe).plan
    target = Target.check(
        options.push,
        lambda: identity.digest(recipe),
        private=options.private,
        overwrite=options.overwrite,
    )
    announce(plan.bytes_merged, target)
    return target
