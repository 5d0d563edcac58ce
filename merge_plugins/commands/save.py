"""`merge-plugins save`: the merge as a checkpoint."""

from __future__ import annotations

import argparse
import logging

from merge_plugins.outputs.save import save
from merge_plugins.recipe import read_recipe


def save_merge(options: argparse.Namespace) -> int:
    """Write the merge as a checkpoint, with tokenizer, recipe and model card."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = read_recipe(options.recipe).trusting(options.trust_remote_code)
    recipe = recipe if options.task is None else recipe.for_task(options.task)
    recipe = recipe.compiling(options.compile or recipe.compile)
    print(save(recipe, options.folder, max_shard_size=options.max_shard_size))
    return 0
