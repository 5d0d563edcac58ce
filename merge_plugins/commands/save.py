"""`merge-plugins save`: the merge as a checkpoint."""

from __future__ import annotations

import argparse
import logging

from merge_plugins.commands.recipe import recipe_of
from merge_plugins.outputs.save import save


def save_merge(options: argparse.Namespace) -> int:
    """Write the merge as a checkpoint, with tokenizer, recipe and model card."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(save(recipe_of(options), options.folder, max_shard_size=options.max_shard_size))
    return 0
