"""`merge-plugins compare`: look at models before they are merged."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

from merge_plugins.compare import Comparison, chosen, compare
from merge_plugins.compare.text import as_dict, as_text
from merge_plugins.errors import MergeError


def compare_models(options: argparse.Namespace) -> int:
    """Compare models, or those of a recipe: sizes, agreement and directions of their changes."""
    draw = _drawing(options.plot) if options.plot else None
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    comparison = compare(chosen(options.models, options.base), options.directions)
    if draw is not None:  # first: `| head` ends what is printed
        draw(comparison, options.plot)
    print(json.dumps(as_dict(comparison), indent=2) if options.json else as_text(comparison))
    return 0


def _drawing(file: Path) -> Callable[[Comparison, Path], None]:
    """Import what draws, and refuse a file that cannot be drawn, before a weight is read."""
    try:
        from merge_plugins.compare.pictures import draw
        from merge_plugins.drawing import check
    except ImportError as exc:
        raise MergeError('--plot needs matplotlib: pip install "merge-plugins[report]"') from exc
    check(file)
    return draw
