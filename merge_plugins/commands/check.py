"""`merge-plugins check`: what a recipe comes to, before a weight is read."""

from __future__ import annotations

import argparse
import json

from merge_plugins import identity
from merge_plugins.commands.recipe import given_recipe
from merge_plugins.engine import Cost, open_merge
from merge_plugins.errors import UntrustedCodeError
from merge_plugins.notice import is_quiet
from merge_plugins.parallel import CPU, accelerator
from merge_plugins.planning import Plan


def check(options: argparse.Namespace) -> int:
    """Check a recipe and its models without reading a weight, or running code that came along."""
    plan = open_merge(given_recipe(options).trusting(None)).plan
    # Imports transformers, which takes seconds: most mistakes are found before.
    from merge_plugins.outputs.fits import fits, has_tokenizer

    fits(plan)
    has_tokenizer(plan)
    if options.verify:
        identity.verify(plan.recipe)
    cost, why = _cost(plan)
    if options.json:
        print(json.dumps({"recipe": plan.recipe.as_dict(), **cost.as_dict()}, indent=2))
    elif not is_quiet():
        print(f"{cost}.{why}")
    return 0


def _cost(plan: Plan) -> tuple[Cost, str]:
    """Return what a merge costs on this machine, and why it has no digest if it has none."""
    device = accelerator() or CPU.device
    try:
        return Cost(plan, device, digest=identity.digest(plan.recipe)), ""
    except UntrustedCodeError as exc:
        reason = f" No digest, as check runs no code that came along: {exc}."
        return Cost(plan, device, digest=""), reason
