"""`merge-plugins compare`: look at models before they are merged."""

from __future__ import annotations

import argparse
import json

from merge_plugins.commands.plot import check_plot
from merge_plugins.compare import chosen, compare
from merge_plugins.compare.text import as_dict, as_text
from merge_plugins.plugins import load_plugins


def compare_models(options: argparse.Namespace) -> int:
    """Compare models, or those of a recipe: sizes, agreement and directions of their changes."""
    if options.plot:
        check_plot(options.plot)
    load_plugins(options.plugin)
    comparison = compare(chosen(options.models, options.base), options.directions)
    if options.plot:  # first: `| head` ends what is printed
        from merge_plugins.compare.pictures import draw

        draw(comparison, options.plot)
    print(json.dumps(as_dict(comparison), indent=2) if options.json else as_text(comparison))
    return 0
