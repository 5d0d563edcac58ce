"""`merge-plugins check`: what a recipe comes to, before a weight is read."""

from __future__ import annotations

import argparse

from merge_plugins import identity
from merge_plugins.commands.recipe import given_recipe
from merge_plugins.engine import open_merge
from merge_plugins.errors import UntrustedCodeError


def check(options: argparse.Namespace) -> int:
    """Check a recipe and its models without reading a weight, or running code that came along."""
    plan = open_merge(given_recipe(options).trusting(None)).plan
    # Imports transformers, which takes seconds: most mistakes are found before.
    from merge_plugins.outputs.fits import fits, has_tokenizer

    fits(plan)
    has_tokenizer(plan)
    if options.verify:
        identity.verify(plan.recipe)
    try:
        print(f"{plan}. Digest {identity.digest(plan.recipe)}.")
    except UntrustedCodeError as exc:
        print(f"{plan}. No digest, as check runs no code that came along: {exc}.")
    return 0
